"""The best weights that calibration data can give a converted model, judged by the whole network's output.

Single-layer errors do not add up, so every step is kept only if it lowers the error of the network's output on images
that nothing was fitted to: the fits of all sites one by one (see `in_order`), then together (see `joint`), then new
batch-norm statistics.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from convsurgeon.base import processes as world
from convsurgeon.calibration.dataset import Calibration, images_in
from convsurgeon.distill.joint import NEAR, fit_jointly
from convsurgeon.fit.sequential import SiteFit, fit_in_order
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.output_error import OutputError
from convsurgeon.graph.outputs import float_tensors
from convsurgeon.graph.state import copy_state, evaluating, restore_state, undisturbed
from convsurgeon.planning.plan import Plan

RENEWED = 256
"""Images that new batch-norm statistics are taken from."""

_NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Reconstruction:
    """What calibration did. Errors are those of the output (see `graph.output_error`) on held-back images.

    `steps` holds (what was tried, the error with it, whether it was kept), beginning with the weights as they were.
    """

    sites: tuple[SiteFit, ...]
    images: int
    held_back: int
    positions: int
    steps: tuple[tuple[str, float, bool], ...]

    @property
    def error_before(self) -> float:
        """Relative output error with weights factored from weights."""
        return self.steps[0][1]

    @property
    def error_after(self) -> float:
        """Relative output error of what was kept."""
        return min(error for _, error, kept in self.steps if kept)


def reconstruct(
    seen: Capture,
    converted: nn.Module,
    plan: Plan,
    data: Calibration,
    seed: int = 0,
    progress: bool = True,
    jointly: bool = True,
    metrics: Mapping[str, Tensor] | None = None,
    effort: float = 1.0,
) -> Reconstruction:
    """Fits a converted model's weights to calibration data, in place; never ends worse on the held-back images.

    Args:
        seen: capture of the original, which is not changed.
        converted: what `operate` made of it.
        plan: as it was carried out.
        data: calibration batches; under `torch.distributed` every process holds all of them and uses its share.
        seed: of the output positions that are drawn.
        progress: whether to show a bar over the sites.
        jointly: whether to fit all sites together after one by one, where there is something to win; to tell plans
            apart that is not needed.
        metrics: of every site (see `sensitivity`), where they are known already.
        effort: the share of the usual steps that a site's fit may take.
    """
    judge = OutputJudge(seen.model, data.held_back)
    steps = [("weights alone", judge.error(converted), True)]
    start = copy_state(converted)
    sites = fit_in_order(seen, converted, plan, data, seed, progress, metrics, effort)
    steps.append(_tried("fitted to activations", converted, judge, start, steps[0][1]))
    best = min(steps[0][1], steps[1][1])
    if jointly and best >= NEAR:
        fitted = copy_state(converted)
        fit_jointly(seen, converted, plan, data.fitted, judge.error, seed, progress)
        steps.append(_tried("fitted together", converted, judge, fitted, best))
        best = min(best, steps[-1][1])
    if any(_renewable(module) for module in converted.modules()):
        fitted = copy_state(converted)
        _renew_norms(converted, _leading(data.fitted, RENEWED)[world.rank() :: world.size()])
        steps.append(_tried("batch norm re-estimated", converted, judge, fitted, best))
    positions = sum(site.positions for site in sites)
    return Reconstruction(tuple(sites), data.images, judge.images, positions, tuple(steps))


def _tried(
    what: str, model: nn.Module, judge: OutputJudge, before: dict[str, Tensor], best: float
) -> tuple[str, float, bool]:
    """Keeps the model as it is if that is better than `best`, puts it back otherwise."""
    error = judge.error(model)
    kept = error < best
    if not kept:
        restore_state(model, before)
    return what, error, kept


class OutputJudge:
    """Error of a model's floating-point outputs against the original's, on held-back batches."""

    def __init__(self, original: nn.Module, batches: Sequence[Example]) -> None:
        self.batches = batches
        self.images = sum(map(images_in, batches))
        with undisturbed(original):
            self.wanted = [float_tensors(batch.run(original)) for batch in self.batches]

    def error(self, model: nn.Module) -> float:
        """Return the error; infinite where an output is not finite."""
        error = OutputError()
        with evaluating(model):
            for batch, wanted in zip(self.batches, self.wanted, strict=True):
                error.add(wanted, float_tensors(batch.run(model)))
        return error.value


def _leading(batches: Sequence[Example], images: int) -> list[Example]:
    """The first batches that hold so many images, at least one for every process."""
    seen = itertools.accumulate(map(images_in, batches))
    enough = next((number for number, count in enumerate(seen, start=1) if count >= images), len(batches))
    return list(batches[: max(enough, world.size())])


def _renewable(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) and module.running_mean is not None and module.track_running_stats


def _renew_norms(model: nn.Module, batches: Sequence[Example]) -> None:
    """New batch-norm statistics: the average over the batches, in one pass."""
    norms = [module for module in model.modules() if isinstance(module, _NORMS) and _renewable(module)]
    with evaluating(model):
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True
        try:
            for batch in batches:
                batch.run(model)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum, norm.training = momentum, False
    for norm in norms:
        for buffer in (norm.running_mean, norm.running_var):
            assert buffer is not None
            buffer.copy_(world.added(buffer)[0] / world.size())
