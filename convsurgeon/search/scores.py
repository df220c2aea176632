r"""What each change of each conv would cost in accuracy, without building any of them.

Three measures, none of which is always right:

* `weights`: the share of the kernel's energy that is lost. Needs no data.
* `output`: the share of the conv's own output energy that is lost on calibration data, after a fit to them.
* `network`: what that does to the output of the network, to first order: `tr(G D S D^T)` with `D` the error of the
  kernel, `S` the second moment of the patches, `G` that of the gradients (see `sensitivity`).

They are sums over layers, and errors of layers do not add up; so plans are made from each and judged as whole networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from convsurgeon.base import processes as world
from convsurgeon.calibration.dataset import images_in
from convsurgeon.fit import sensitivity
from convsurgeon.fit.regression import Gathering
from convsurgeon.fit.samples import patches, positions, positions_per_image
from convsurgeon.forms.covariance import Covariance
from convsurgeon.forms.leastsquares import Normal, alternate, oas_ridge, precision
from convsurgeon.graph.example import Example
from convsurgeon.graph.state import undisturbed
from convsurgeon.planning.plan import Change
from convsurgeon.search.rank_curve import Errors, read_off

Measures = dict[str, dict[tuple[str, str], float]]
"""Measure -> (site, form's label) -> error."""

IMAGES = 256
MACS = 3e11
"""Of the forward passes: large networks are rated on fewer images, down to the least."""

_LEAST_IMAGES = 16
_SWEEPS = 1

EFFORT = 0.5
"""Share of a fit's steps that is enough to tell candidates apart."""

WIDE = 1024
"""Unknowns of an output from which on not every rank is fitted, and to no more rows than these for each of them."""

_ROWS_OF_WIDE = 2


def by_weights(options: Mapping[str, Sequence[Change]]) -> Measures:
    """The measure that needs no data."""
    found = {(name, change.form.label): _lost(change) for name, changes in options.items() for change in changes}
    return {"weights": found}


def _lost(change: Change) -> float:
    """The share of the energy that a change drops; a form that keeps nothing on purpose loses everything."""
    return 1.0 if change.lost is None else change.lost


def by_data(
    model: nn.Module,
    options: Mapping[str, Sequence[Change]],
    batches: Sequence[Example],
    gradients: Mapping[str, Tensor],
    seed: int,
    progress: bool,
) -> Measures:
    """All three measures.

    Args:
        model: the original.
        options: the changes in question, by site.
        batches: calibration images.
        gradients: second moments (O, O) of those that come back to each site, see `sensitivity`.
        seed: of the positions that are drawn.
        progress: whether to show a bar over the sites.
    """
    patches_of = _second_moments(model, list(options), batches, seed)
    output: dict[tuple[str, str], float] = {}
    network: dict[tuple[str, str], float] = {}
    for name, changes in tqdm(options.items(), desc="appraising", unit="site", disable=world.silent(progress)):
        conv = model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        site = _Site(conv, patches_of[name], gradients[name])
        if conv.weight[0].numel() >= WIDE:
            found = read_off(changes, site.errors, partial(site.errors, sweeps=0))
        else:
            found = {one.form.label: site.errors(one) for one in changes}
        for label, (own, effect) in found.items():
            output[name, label], network[name, label] = own, effect
    return {"network": network, "output": output, **by_weights(options)}


def looked_at(options: Mapping[str, Sequence[Change]]) -> int:
    """How many images candidates are rated on and plans are tried on: `IMAGES`, fewer of large networks."""
    sites = [changes[0].site for changes in options.values() if changes]
    macs = sum(site.macs / site.images(site.calls[0]) for site in sites)
    return int(max(_LEAST_IMAGES, min(IMAGES, MACS / max(1, macs))))


@dataclass(frozen=True)
class Moment:
    """Second moment of a conv's patches, group by group, and how many rows it was taken from."""

    values: list[Covariance]
    rows: int


class _Site:
    """A conv with its statistics."""

    def __init__(self, conv: nn.Conv2d, moment: Moment, gradient: Tensor) -> None:
        self.conv, self.moment, self.gradient = conv, moment, gradient
        self.ridges = [oas_ridge(values, moment.rows) for values in moment.values]
        self.normals = [self._normal(group) for group in range(conv.groups)]

    def errors(self, change: Change, sweeps: int = _SWEEPS) -> Errors:
        """Relative error of the conv's output, and squared error of the network's, after so many sweeps of a fit."""
        lost = _lost(change)
        try:
            found = self._fitted(change, sweeps) if change.form.fittable else self._blind(lost)
        except FloatingPointError:  # activations too large to be squared
            return lost, lost
        return found if all(map(math.isfinite, found)) else (lost, lost)

    def _blind(self, lost: float) -> tuple[float, float]:
        """Of a form that cannot be fitted: as if every part of the kernel lost the same share."""
        return lost, lost * sum(effect for _, effect in self.whole)

    def _fitted(self, change: Change, sweeps: int) -> tuple[float, float]:
        wrong = network = 0.0
        scheme = change.form.scheme(change.site.geometry)
        for group, normal in enumerate(self.normals):
            factors = alternate(scheme, normal, scheme.start(normal, normal.regress()), sweeps)
            error = self._kernel(group) - scheme.kernel(factors).double()
            own, effect = self._costs(group, error)
            wrong, network = wrong + own, network + effect
        energy = sum(own for own, _ in self.whole)
        return (wrong / energy if energy > 0 else 0.0), network

    def _own(self, group: int) -> slice:
        size = self.conv.out_channels // self.conv.groups
        return slice(group * size, (group + 1) * size)

    def _kernel(self, group: int) -> Tensor:
        return self.conv.weight.detach()[self._own(group)].flatten(2).double()

    @cached_property
    def whole(self) -> list[tuple[float, float]]:
        """The costs of losing all of the kernel, group by group."""
        return [self._costs(group, self._kernel(group)) for group in range(self.conv.groups)]

    def _costs(self, group: int, error: Tensor) -> tuple[float, float]:
        """What an error of the kernel (O, C, K) is to the conv's output, and to the network's."""
        own, dtype = self._own(group), precision(error[0].numel())
        flat, weights = error.flatten(1).to(dtype), self.gradient[own, own].to(dtype)
        pulled = self.moment.values[group].times(flat)
        return float((flat * pulled).sum()), float((pulled * (weights @ flat)).sum())

    def _normal(self, group: int) -> Normal:
        own = self._own(group)
        kernel = self._kernel(group)
        kernel = kernel.to(precision(kernel[0].numel()))
        covariance = self.moment.values[group].ridged(self.ridges[group])
        cross = covariance.times(kernel.flatten(1)).reshape(kernel.shape)
        metric = sensitivity.mixed(self.gradient[own, own]).to(kernel)
        return Normal(covariance, cross, metric, kernel, EFFORT)


def _second_moments(model: nn.Module, names: Sequence[str], batches: Sequence[Example], seed: int) -> dict[str, Moment]:
    """Second moments of the patches that every named conv sees, of random positions of all its calls."""
    watchers = {name: _Watcher(model.get_submodule(name), sum(map(images_in, batches))) for name in names}
    with undisturbed(model):
        handles = [watcher.conv.register_forward_hook(watcher) for watcher in watchers.values()]
        try:
            for number, batch in enumerate(batches):
                if number % world.size() == world.rank():
                    for watcher in watchers.values():
                        watcher.generator.manual_seed(seed * 7919 + number)
                    batch.run(model)
        finally:
            for handle in handles:
                handle.remove()
    return {name: watcher.moment() for name, watcher in watchers.items()}


class _Watcher:
    """Forward hook of a conv: gathers the second moment of its patches."""

    def __init__(self, conv: nn.Module, images: int) -> None:
        assert isinstance(conv, nn.Conv2d)
        self.conv = conv
        self.size = conv.weight[0].numel()
        self.count = positions_per_image(images, self.size * conv.groups)
        if self.size >= WIDE:
            self.count = min(self.count, max(1, _ROWS_OF_WIDE * self.size // images))
        self.gathering = Gathering(conv.groups, self.size)
        self.generator = torch.Generator()

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        where = positions(output.shape, self.count, self.generator)
        self.gathering.add(patches(args[0].detach(), self.conv, where))

    def moment(self) -> Moment:
        """Over all processes."""
        return Moment(*self.gathering.covariances(self.conv.weight))
