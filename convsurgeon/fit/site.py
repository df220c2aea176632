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

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convsurgeon.fit.regression import spread_of
from convsurgeon.fit.samples import Samples, mean
from convsurgeon.forms.form import Form
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.leastsquares import Normal, Parts, Scheme, alternate
from convsurgeon.forms.systems import CG_STEPS
from convsurgeon.graph.neighbours import Activation

SWEEPS = 4
ROUNDS = 2
"""Sweeps of least squares, then rounds of the activation's majorisation with one sweep each.

Large layers take half of both. On ResNet-20, rank 2 (seeds 5 to 7), the error on other images rises again with
more rounds, by 2 to 3 % at 5.
"""

_SMALL = 1e-3


@dataclass(frozen=True)
class Behind:
    """What follows the conv: `scale` and `shift` (O,), the shortcut of both networks at the samples, the activation.

    `intercept` says whether the conv may be given another bias: it has one, or a batch norm follows that can hold it.
    """

    scale: Tensor
    shift: Tensor
    shortcut: tuple[Tensor, Tensor]
    activation: tuple[Activation, ...]
    intercept: bool


@dataclass(frozen=True)
class Fitted:
    """Kernels of every branch's stages, and the bias (O,) that goes with them."""

    kernels: list[tuple[Tensor, ...]]
    dense: Tensor
    bias: Tensor


def fit_site(
    form: Form, conv: nn.Conv2d, samples: Samples, behind: Behind, metric: Tensor, effort: float = 1.0
) -> Fitted:
    """Fits a site's kernels to samples of all processes, group by group.

    Args:
        form: settled, and one that is fittable.
        conv: the dense conv; its kernel is where the fit is drawn to when there is little data.
        samples: patches of the converted network, outputs of the original.
        behind: what follows.
        metric: (O, O), what errors of the outputs cost the network (see `sensitivity`).
        effort: the share of the usual steps that it may take.
    """
    geometry = Geometry.of(conv)
    scheme = form.scheme(geometry)
    size = conv.out_channels // conv.groups
    parts = []
    for group in range(conv.groups):
        own = slice(group * size, (group + 1) * size)
        kernel = conv.weight.detach()[own].flatten(2).double()
        shortcut = (behind.shortcut[0][:, own], behind.shortcut[1][:, own])
        active = tuple(found.of(own) for found in behind.activation)
        part = Behind(behind.scale[own], behind.shift[own], shortcut, active, behind.intercept)
        rows = Samples(samples.patches[:, group], samples.targets[:, own])
        parts.append(_Fit(scheme, kernel, rows, part, metric[own, own], effort).run())
    fitted, biases = zip(*parts, strict=True)
    dense = torch.cat([scheme.kernel(group) for group in fitted])
    return Fitted(form.kernels(geometry, fitted), dense.reshape(conv.weight.shape), torch.cat(biases))


class _Fit:
    """The fit of one group."""

    def __init__(
        self, scheme: Scheme, kernel: Tensor, samples: Samples, behind: Behind, metric: Tensor, effort: float
    ) -> None:
        self.scheme, self.kernel, self.behind, self.metric, self.effort = scheme, kernel, behind, metric, effort
        width = samples.patches.shape[1]
        self.center = mean(samples.patches) if behind.intercept else samples.patches.new_zeros(width).double()
        self.samples = samples
        self.scale = invertible(behind.scale)
        self.spread = spread_of(samples.patches, self.center)

    def run(self) -> tuple[Parts, Tensor]:
        """The factors, and the bias for patches that are not centred."""
        original = self.samples.targets * self.behind.scale + self.behind.shift + self.behind.shortcut[0]
        offset = self.behind.shift + self.behind.shortcut[1]
        normal, bias = self._normal((original - offset) / self.scale)
        large = normal.steps < CG_STEPS
        start = self.scheme.start(normal, normal.regress())
        factors = alternate(self.scheme, normal, start, SWEEPS // 2 if large else SWEEPS)
        for activation in self.behind.activation * (ROUNDS // 2 if large else ROUNDS):
            dense = self.scheme.kernel(factors).flatten(1).double()
            constant = (bias - dense @ self.center).float()
            predicted = (self.samples.patches @ dense.T.float() + constant) * self.scale + offset
            target = predicted + _share(activation, predicted, original) * (original - predicted)
            normal, bias = self._normal((target - offset) / self.scale)
            factors = alternate(self.scheme, normal, factors, 1)
        factors = tuple(part.double() for part in factors)
        return factors, bias - self.scheme.kernel(factors).flatten(1) @ self.center

    def _normal(self, target: Tensor) -> tuple[Normal, Tensor]:
        """Normal equations for a target (S, O), drawn to the original kernel by the ridge; the target's mean."""
        bias = mean(target) if self.behind.intercept else target.new_zeros(target.shape[1]).double()
        found = self.spread.regress(target - bias.float(), self.kernel.flatten(1))
        drawn, regression = (values.reshape(self.kernel.shape) for values in found)
        return Normal(self.spread.covariance, drawn, self.metric.to(self.spread.dtype), regression, self.effort), bias


def site_error(samples: Samples, behind: Behind, dense: Tensor, bias: Tensor, metric: Tensor) -> tuple[float, float]:
    """Squared error behind the activation, in the metric of the fit, of a kernel (O, C/groups, kh, kw) with a bias.

    Returns:
        The error, and the energy of the original around its mean, both summed over this process's samples.
    """
    groups = samples.patches.shape[1]
    flat = dense.float().flatten(1).unflatten(0, (groups, -1))
    outputs = torch.einsum("sgp,gop->sgo", samples.patches, flat).flatten(1) + bias.float()
    original = samples.targets * behind.scale + behind.shift + behind.shortcut[0]
    predicted = outputs * behind.scale + behind.shift + behind.shortcut[1]
    for activation in behind.activation:
        original, predicted = activation(original), activation(predicted)
    scale = invertible(behind.scale)
    wrong, whole = (predicted - original) / scale, (original - original.mean(0)) / scale
    return tuple(float(((values @ metric.float()) * values).sum()) for values in (wrong, whole))  # type: ignore[return-value]


def _share(activation: Activation, predicted: Tensor, original: Tensor) -> Tensor:
    """How far a round's target lies from what is predicted towards the original; the top of this file says why."""
    apart = predicted - original
    secant = (activation(predicted) - activation(original)) / torch.where(apart == 0, 1.0, apart)
    slope = activation.slope(original)
    share = torch.maximum(secant * activation.slope(predicted), slope.square())
    return (share / slope.square().max().clamp(min=1e-12)).clamp(0, 1)


def invertible(scale: Tensor) -> Tensor:
    """A batch norm's scale (O,), channels that it all but switches off left at a small one."""
    return torch.where(scale.abs() < _SMALL, torch.full_like(scale, _SMALL), scale)
