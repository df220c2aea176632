r"""What each change of each conv would cost in accuracy, without building any network.

On images the score is the squared error of the network's output that a change causes, to first order:
`tr(G D S D^T)` with `D` the error of the fitted kernel, `S` the second moment of the patches and `G` that of the
gradients (see `fit.sensitivity`). Without images it is the share of the kernel's energy that is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from convsurgeon.base.progress import bar
from convsurgeon.calibration.dataset import images_in
from convsurgeon.fit import sensitivity
from convsurgeon.fit.known import Known
from convsurgeon.fit.regression import MomentSum
from convsurgeon.fit.samples import patches, positions, positions_per_image
from convsurgeon.forms.covariance import Covariance
from convsurgeon.forms.leastsquares import Normal, Parts, alternate, oas_ridge, precision
from convsurgeon.graph.example import Example
from convsurgeon.graph.state import undisturbed
from convsurgeon.planning.plan import Change
from convsurgeon.search.rank_curve import score_ranks

Scores = dict[tuple[str, str], float]
"""(site, form's label) -> score; lower is better, and the scores of a network's layers are summed."""

MOST_IMAGES = 256
LEAST_IMAGES = 16

MOST_MACS = 1e11
"""Multiply-accumulates of all forward passes together: large networks are scored on fewer images."""

EFFORT = 0.5
"""Share of a fit's usual steps that is enough to tell candidates apart."""

WIDE = 1024
"""Inputs of an output (channels times taps) from which on most ranks are interpolated, on fewer rows."""

_ROWS_PER_INPUT_IF_WIDE = 2


def score_by_weights(options: Mapping[str, Sequence[Change]]) -> Scores:
    """Return the share of every kernel's energy that each change drops."""
    return {(name, change.form.label): _lost(change) for name, changes in options.items() for change in changes}


def score_by_data(
    model: nn.Module,
    options: Mapping[str, Sequence[Change]],
    batches: Sequence[Example],
    known: Known,
    *,
    seed: int,
    progress: bool,
) -> Scores:
    """Return the first-order error of the network's output for every change.

    Args:
        model: the original.
        options: the changes in question, by site.
        batches: calibration images.
        known: the gradients at each site's output; the factors of every fit are added.
        seed: of the positions that are drawn.
        progress: whether to show a bar over the sites.
    """
    moments = _second_moments(model, list(options), batches, seed)
    scores: dict[tuple[str, str], float] = {}
    for name, changes in bar(options.items(), desc="scoring", unit="layer", show=progress):
        conv = model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        site = _SiteScorer(name, conv, moments.pop(name), known)
        if conv.weight[0].numel() >= WIDE:
            found = score_ranks(changes, site.score, partial(site.score, sweeps=0))
        else:
            found = {change.form.label: site.score(change) for change in changes}
        scores |= {(name, label): score for label, score in found.items()}
    return scores


def images_for_scores(options: Mapping[str, Sequence[Change]]) -> int:
    """Return how many images candidates are scored and plans are tried on; fewer for large networks."""
    sites = [changes[0].site for changes in options.values() if changes]
    macs = sum(site.macs / site.images(site.calls[0]) for site in sites)
    return int(max(LEAST_IMAGES, min(MOST_IMAGES, MOST_MACS / max(1, macs))))


def _lost(change: Change) -> float:
    """Return the share of the energy that a change drops; a form that starts anew loses everything."""
    return 1.0 if change.lost is None else change.lost


@dataclass(frozen=True)
class _Moments:
    """Second moments of a conv's patches, one per group, and how many rows they were taken from."""

    values: list[Covariance]
    rows: int


class _SiteScorer:
    """Scores the changes of one conv from its statistics."""

    def __init__(self, name: str, conv: nn.Conv2d, moments: _Moments, known: Known) -> None:
        self.conv, self.moments, self.gradient, self.starts = conv, moments, known.gradients[name], known.starts
        self.problems = [self._problem(group) for group in range(conv.groups)]

    def score(self, change: Change, sweeps: int = 1) -> float:
        """Return the squared error of the network's output after so many sweeps of a fit."""
        lost = _lost(change)
        try:
            if not change.form.fittable:  # it cannot be fitted: as if every part of the kernel lost the same share
                found = lost * sum(self._effect(group, self._kernel(group)) for group in range(self.conv.groups))
            else:
                factors = [self._fit(change, group, sweeps) for group in range(self.conv.groups)]
                scheme = change.form.scheme(change.site.geometry)
                errors = [self._kernel(group) - scheme.kernel(parts).double() for group, parts in enumerate(factors)]
                found = sum(self._effect(group, error) for group, error in enumerate(errors))
                if sweeps:
                    self.starts[change.name, change.form.label] = factors
        except FloatingPointError:  # activations too large to be squared
            return lost
        return found if math.isfinite(found) else lost

    def _fit(self, change: Change, group: int, sweeps: int) -> Parts:
        scheme, problem = change.form.scheme(change.site.geometry), self.problems[group]
        return alternate(scheme, problem, scheme.start(problem, problem.regress()), sweeps)

    def _rows_of(self, group: int) -> slice:
        size = self.conv.out_channels // self.conv.groups
        return slice(group * size, (group + 1) * size)

    def _kernel(self, group: int) -> Tensor:
        return self.conv.weight.detach()[self._rows_of(group)].flatten(2).double()

    def _effect(self, group: int, error: Tensor) -> float:
        """Return what an error of the kernel (O, C, K) does to the network's output."""
        rows, dtype = self._rows_of(group), precision(error[0].numel())
        flat, weights = error.flatten(1).to(dtype), self.gradient[rows, rows].to(dtype)
        return float((self.moments.values[group].times(flat) * (weights @ flat)).sum())

    def _problem(self, group: int) -> Normal:
        rows, kernel = self._rows_of(group), self._kernel(group)
        kernel = kernel.to(precision(kernel[0].numel()))
        moment = self.moments.values[group]
        covariance = moment.with_ridge(oas_ridge(moment, self.moments.rows))
        cross = covariance.times(kernel.flatten(1)).reshape(kernel.shape)
        metric = sensitivity.mixed(self.gradient[rows, rows]).to(kernel)
        return Normal(covariance, cross, metric, kernel, EFFORT)


def _second_moments(
    model: nn.Module, names: Sequence[str], batches: Sequence[Example], seed: int
) -> dict[str, _Moments]:
    """Return second moments of the patches that every named conv sees, at random positions of all its calls."""
    watchers = {name: _Watcher(model.get_submodule(name), sum(map(images_in, batches))) for name in names}
    with undisturbed(model):
        handles = [watcher.conv.register_forward_hook(watcher) for watcher in watchers.values()]
        try:
            for number, batch in enumerate(batches):
                for watcher in watchers.values():
                    watcher.generator.manual_seed(seed * 7919 + number)
                batch.run(model)
        finally:
            for handle in handles:
                handle.remove()
    return {name: watcher.moments() for name, watcher in watchers.items()}


class _Watcher:
    """Forward hook of a conv that gathers the second moment of its patches."""

    def __init__(self, conv: nn.Module, images: int) -> None:
        assert isinstance(conv, nn.Conv2d)
        self.conv = conv
        size = conv.weight[0].numel()
        self.count = positions_per_image(images, size * conv.groups)
        if size >= WIDE:
            self.count = min(self.count, max(1, _ROWS_PER_INPUT_IF_WIDE * size // images))
        self.gathering = MomentSum(conv.groups, size)
        self.generator = torch.Generator()

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        where = positions(output.shape, self.count, self.generator)
        self.gathering.add(patches(args[0].detach(), self.conv, where))

    def moments(self) -> _Moments:
        """Return what was gathered."""
        return _Moments(*self.gathering.covariances(self.conv.weight))
