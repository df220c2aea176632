"""The best weights that calibration data can give a converted model.

Errors of single layers do not add up. So every step is kept only if it lowers the error of the network's output on
held-back images: the fits of all sites one by one (`fit.sequential`), then together (`joint`), then new batch-norm
statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from convsurgeon.calibration.dataset import Calibration, first_batches, join_batches
from convsurgeon.distill.joint import NEAR, fit_jointly
from convsurgeon.distill.loss import OutputJudge
from convsurgeon.distill.record import Score
from convsurgeon.fit.known import Known
from convsurgeon.fit.sequential import SiteFit, fit_in_order
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.state import copy_state, evaluating, restore_state
from convsurgeon.planning.plan import Plan

RENEWED = 256
"""Images that new batch-norm statistics are taken from."""

_Made = TypeVar("_Made")
_NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Reconstruction:
    """What calibration did; errors are those of the output (see `graph.output_error`) on held-back images.

    `steps` are (what was tried, the error with it, whether it was kept), beginning with the weights as they were, whose
    error is infinite where nobody asked; `score` is that of what was kept. `positions` counts all sites' outputs that
    were fitted to.
    """

    sites: tuple[SiteFit, ...]
    images: int
    held_back: int
    positions: int
    steps: tuple[tuple[str, float, bool], ...]
    score: Score

    @property
    def error_before(self) -> float:
        """Return the output error of weights that were factored from weights."""
        return self.steps[0][1]

    @property
    def error_after(self) -> float:
        """Return the output error of what was kept."""
        return self.score.error


def reconstruct(
    seen: Capture,
    converted: nn.Module,
    plan: Plan,
    data: Calibration,
    *,
    seed: int = 0,
    progress: bool = True,
    jointly: bool = True,
    effort: float = 1.0,
    known: Known | None = None,
    judge: OutputJudge | None = None,
) -> Reconstruction:
    """Fit a converted model's weights to calibration data, in place; its error on the held-back images never rises.

    All sites are fitted together after one by one if `jointly`, where the error is not small already; if not, the
    weights as they were are not judged. `known` is from earlier fits to this network (see `fit_in_order`), `judge`
    judges by the held-back images, and `effort` is the share of the usual steps that a site's fit may take.
    """
    judge = judge or OutputJudge(seen.model, data.held_back)
    best = judge.score(converted) if jointly else Score(math.inf)
    steps = [("weights alone", best.error, True)]

    def attempt(what: str, change: Callable[[], _Made]) -> _Made:
        """Change the weights, and put them back if their error is not the lowest so far."""
        nonlocal best
        before = copy_state(converted, _fitted(converted, plan)) if jointly or best.error < math.inf else None
        made, score = change(), judge.score(converted)
        kept = score.error < best.error
        if kept:
            best = score
        elif before is not None:
            restore_state(converted, before)
        steps.append((what, score.error, kept))
        return made

    sites = attempt(
        "fitted to activations",
        lambda: fit_in_order(seen, converted, plan, data, seed=seed, progress=progress, effort=effort, known=known),
    )
    if jointly and best.error >= NEAR:
        attempt("fitted together", lambda: fit_jointly(seen, converted, plan, data.fitted, judge.score, seed, progress))
    if any(_renewable(module) for module in converted.modules()):
        renewed = join_batches(first_batches(data.fitted, RENEWED), data.together)
        attempt("batch norm re-estimated", lambda: _renew_norms(converted, renewed))
    positions = sum(site.positions for site in sites)
    return Reconstruction(tuple(sites), data.images, judge.images, positions, tuple(steps), best)


def _fitted(converted: nn.Module, plan: Plan) -> Iterator[nn.Parameter]:
    """Yield the parameters that fits may change: those of rewritten sites, and of batch norms."""
    sites = {name for change in plan.changes.values() for name in change.site.names}
    for name, module in converted.named_modules():
        if name in sites or hasattr(module, "running_mean"):
            yield from module.parameters()


def _renewable(module: nn.Module) -> bool:
    if not isinstance(module, _NORMS) or module.running_mean is None or not module.track_running_stats:
        return False
    return module.eps > 0  # torch refuses to train a norm without


def _renew_norms(model: nn.Module, batches: Sequence[Example]) -> None:
    """Replace batch-norm statistics by the average over the batches, in one pass."""
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
