"""One site's fit: from samples to the kernels of its branches.

Target and prediction are compared behind the batch norm, the shortcut and the activation `f` that follow the conv:

    z = scale * y + shift + shortcut          error = sum (f(z') - f(z))^2

Without an activation that is least squares for `y`. With one, it is lowered by majorisation: a round moves the target
from what is predicted, z', towards the original, z, by the share

    w = max(s f'(z'), f'(z)^2) / max f'^2     with the secant's slope  s = (f(z') - f(z)) / (z' - z)

whose first part gives the surrogate the slope of the error at z'; the second keeps values that a flat piece hides from
being given up. Behind a ReLU that is: where the original is cut off (z <= 0) any z' <= 0 is as good, so the target
there is min(z', 0), and z elsewhere (Zhang et al. 2015, "Accelerating very deep convolutional networks", section 3.3,
in the form that needs no penalty). The shortcut's own error, which an earlier layer has made, is part of the target:
the branch repairs it (the idea of He, Zhang & Sun 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from convsurgeon.fit.regression import Regression
from convsurgeon.fit.samples import Samples, mean
from convsurgeon.forms.form import Form
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.leastsquares import Normal, Parts, Scheme, alternate
from convsurgeon.forms.systems import CG_STEPS
from convsurgeon.graph.neighbours import Activation

SWEEPS = 2
ROUNDS = 2
"""Sweeps of least squares, which earlier factors do without, then rounds of the activation's majorisation with one
sweep each; half for large layers."""

EARLY = 0.4
"""Share of the usual steps in all rounds but the last: the next one has other targets."""

_SMALL = 1e-3
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Epilogue:
    """What follows a conv: batch norm, shortcut and activation.

    Args:
        scale: of the batch norm (O,).
        shift: of it (O,).
        shortcut: its values (S, O) at the samples, in the original and in the converted network.
        activation: None where there is none, or another one.
        intercept: whether the conv may be given another bias: it has one, or a batch norm follows that can hold it.
    """

    scale: Tensor
    shift: Tensor
    shortcut: tuple[Tensor, Tensor]
    activation: Activation | None
    intercept: bool

    def group(self, own: slice) -> Epilogue:
        """Return what follows some of the outputs."""
        activation = None if self.activation is None else self.activation.of(own)
        shortcut = (self.shortcut[0][:, own], self.shortcut[1][:, own])
        return Epilogue(self.scale[own], self.shift[own], shortcut, activation, self.intercept)


@dataclass(frozen=True)
class Fitted:
    """A site's fit: its factors by group, the kernels of every branch's stages, their dense sum, and the bias (O,)."""

    factors: list[Parts]
    kernels: list[tuple[Tensor, ...]]
    dense: Tensor
    bias: Tensor


def fit_site(
    form: Form,
    conv: nn.Conv2d,
    samples: Samples,
    epilogue: Epilogue,
    metric: Tensor,
    effort: float = 1.0,
    start: Sequence[Parts] | None = None,
) -> Fitted:
    """Fit a site's kernels to samples, group by group.

    Args:
        form: settled, and one that is fittable.
        conv: the dense conv; its kernel is where the fit is drawn to when there is little data.
        samples: patches of the converted network, outputs of the original.
        epilogue: what follows the conv.
        metric: (O, O), what errors of the outputs cost the network (see `sensitivity`).
        effort: the share of the usual steps that it may take.
        start: factors by group of an earlier fit of this form, which take half of the sweeps.
    """
    geometry = Geometry.of(conv)
    scheme = form.scheme(geometry)
    size = conv.out_channels // conv.groups
    parts = []
    for group in range(conv.groups):
        own = slice(group * size, (group + 1) * size)
        kernel = conv.weight.detach()[own].flatten(2).double()
        rows = Samples(samples.patches[:, group], samples.targets[:, own])
        near = None if start is None else start[group]
        parts.append(_fit_group(scheme, kernel, rows, epilogue.group(own), metric[own, own], effort, near))
    fitted, biases = zip(*parts, strict=True)
    dense = torch.cat([scheme.kernel(group) for group in fitted])
    return Fitted(list(fitted), form.kernels(geometry, fitted), dense.reshape(conv.weight.shape), torch.cat(biases))


def _fit_group(
    scheme: Scheme,
    kernel: Tensor,
    samples: Samples,
    after: Epilogue,
    metric: Tensor,
    effort: float,
    near: Parts | None,
) -> tuple[Parts, Tensor]:
    """Return the factors of one group, and the bias for patches that are not centred."""
    center = mean(samples.patches) if after.intercept else samples.patches.new_zeros(samples.patches.shape[1]).double()
    scale, regression = invertible(after.scale), Regression(samples.patches, center)

    def normal_equations(target: Tensor) -> tuple[Normal, Tensor]:
        """Return those for a target (S, O), drawn to the original kernel; and the target's mean."""
        bias = mean(target) if after.intercept else target.new_zeros(target.shape[1]).double()
        found = regression.regress(target - bias.float(), kernel.flatten(1))
        drawn, dense = (values.reshape(kernel.shape) for values in found)
        return Normal(regression.covariance, drawn, metric.to(regression.dtype), dense, effort), bias

    original = samples.targets * after.scale + after.shift + after.shortcut[0]
    normal, bias = normal_equations((original - after.shift - after.shortcut[1]) / scale)
    large = normal.steps < CG_STEPS
    sweeps, rounds = (SWEEPS // 2, ROUNDS // 2) if large else (SWEEPS, ROUNDS)
    if near is None:
        factors = alternate(scheme, normal, scheme.start(normal, normal.regress()), sweeps)
    else:
        factors = tuple(part.to(regression.dtype) for part in near)
        if after.activation is None:
            factors = alternate(scheme, normal, factors, rounds)
    steepest = _steepest(after.activation, original)
    for left in reversed(range(rounds if after.activation else 0)):
        dense = scheme.kernel(factors).flatten(1).double()
        constant = (bias - dense @ center).float()
        wanted = _targets(samples.patches, original, after, dense.float(), constant, steepest)
        normal, bias = normal_equations(wanted)
        factors = alternate(scheme, replace(normal, effort=EARLY * effort) if left else normal, factors, 1)
    factors = tuple(part.double() for part in factors)
    return factors, bias - scheme.kernel(factors).flatten(1) @ center


def site_error(samples: Samples, epilogue: Epilogue, dense: Tensor, bias: Tensor, metric: Tensor) -> float:
    """Return the error behind the activation, in the metric (O, O), relative to the original around its mean."""
    groups = samples.patches.shape[1]
    flat = dense.float().flatten(1).unflatten(0, (groups, -1))
    outputs = torch.einsum("sgp,gop->sgo", samples.patches, flat).flatten(1) + bias.float()
    original = samples.targets * epilogue.scale + epilogue.shift + epilogue.shortcut[0]
    predicted = outputs * epilogue.scale + epilogue.shift + epilogue.shortcut[1]
    if epilogue.activation is not None:
        original, predicted = epilogue.activation(original), epilogue.activation(predicted)
    scale = invertible(epilogue.scale)
    wrong, whole = (predicted - original) / scale, (original - original.mean(0)) / scale
    error, energy = (float(((values @ metric.float()) * values).sum()) for values in (wrong, whole))
    return error / energy if energy > 0 else (0.0 if error == 0 else math.inf)


def _targets(
    patches: Tensor, original: Tensor, after: Epilogue, dense: Tensor, bias: Tensor, steepest: float
) -> Tensor:
    """Return a round's targets of the conv (S, O): from what it gives now a share of the way to the original.

    Args:
        patches: (S, p).
        original: behind the shortcut (S, O).
        after: what follows the conv, with an activation.
        dense: what the conv is now (O, p).
        bias: of it (O,).
        steepest: see `_steepest`.
    """
    assert after.activation is not None
    targets, scale = torch.empty_like(original), invertible(after.scale)
    for first in range(0, len(original), _BLOCK_ROWS):  # what is worked out on the way is several times as large
        rows = slice(first, first + _BLOCK_ROWS)
        wanted, offset = original[rows], after.shift + after.shortcut[1][rows]
        predicted = (patches[rows] @ dense.T + bias) * scale + offset
        target = predicted + _share(after.activation, predicted, wanted, steepest) * (wanted - predicted)
        targets[rows] = (target - offset) / scale
    return targets


def _share(activation: Activation, predicted: Tensor, original: Tensor, steepest: float) -> Tensor:
    """Return how far a round's target lies from the prediction towards the original; the top of this file says why."""
    apart = predicted - original
    secant = (activation(predicted) - activation(original)) / torch.where(apart == 0, 1.0, apart)
    share = torch.maximum(secant * activation.slope(predicted), activation.slope(original).square())
    return (share / steepest).clamp(0, 1)


def _steepest(activation: Activation | None, original: Tensor) -> float:
    """Return the largest squared slope of an activation at the original's values, above 0; 1 without an activation."""
    if activation is None:
        return 1.0
    return max([1e-12, *(float(activation.slope(rows).square().max()) for rows in original.split(_BLOCK_ROWS))])


def invertible(scale: Tensor) -> Tensor:
    """Return a batch norm's scale (O,), at least a small one for channels that it all but switches off."""
    return torch.where(scale.abs() < _SMALL, torch.full_like(scale, _SMALL), scale)
