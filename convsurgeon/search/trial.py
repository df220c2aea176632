"""Which plan keeps a budget best: several are made, each by another measure of a layer's error, and tried as a whole.

Errors of single layers do not add up, so no measure is right everywhere. With calibration each plan is carried out and
fitted to a part of the images, and the error of the whole network on held-back images decides. Without, there is only
the energy of the weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from convsurgeon.base.errors import BudgetError
from convsurgeon.base.precision import Precision
from convsurgeon.calibration.dataset import Calibration, first_batches
from convsurgeon.distill.reconstruct import OutputJudge, reconstruct
from convsurgeon.fit import sensitivity
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.planning.candidates import candidates, kernels_of, plan_captured
from convsurgeon.planning.plan import Change, Plan
from convsurgeon.planning.select import Predicate
from convsurgeon.planning.surgery import operate
from convsurgeon.runtime.latencies import Latencies, pays
from convsurgeon.search.bracket import Bracket
from convsurgeon.search.budget import Budget
from convsurgeon.search.choice import Judged, Problem, distinct, problem
from convsurgeon.search.confirm import Timing, confirmed
from convsurgeon.search.scores import EFFORT, Measures, by_data, by_weights, looked_at

ALIKE = 1.25
"""Times the MACs of the cheapest candidate of a site, up to which another is weighed against it without a budget."""

_TRIALS = 7
_SLOW = "kept dense: no form is clearly faster here"


@dataclass(frozen=True)
class Open:
    """A captured model with every change that could be made; `base` is the plan of the first ones."""

    seen: Capture
    base: Plan
    options: dict[str, list[Change]]

    def paying(self, table: Latencies) -> Open:
        """Without what is not clearly faster by a table: to rate it takes long, and no plan would take it."""
        options = {
            name: [change for change in changes if pays(table, name, change.form)]
            for name, changes in self.options.items()
        }
        left = dict.fromkeys((name for name, changes in options.items() if not changes), _SLOW)
        return Open(self.seen, self.base.without(left), {name: found for name, found in options.items() if found})


@dataclass(frozen=True)
class Appraised:
    """A captured model with every change that could be made, and what each would lose by every measure."""

    seen: Capture
    base: Plan
    options: dict[str, list[Change]]
    measures: Measures
    data: tuple[Calibration, ...]
    gradients: Mapping[str, Tensor]
    """Second moments of those that come back to every site, where there are data."""
    seed: int
    precision: Precision = "fp32"
    """Of the file that ships: the error of a network on trial is that of its file."""


def opened(seen: Capture, forms: Sequence[Form], policy: Predicate | None, allow_growth: bool) -> Open:
    """Gathers the candidates."""
    kernels = kernels_of(seen)
    base = plan_captured(seen, forms, policy, allow_growth, kernels)
    return Open(seen, base, candidates(base, kernels, forms, allow_growth))


def rate(found: Open, data: Calibration | None, seed: int, progress: bool, precision: Precision = "fp32") -> Appraised:
    """The candidates with their errors: from the weights, and from calibration data where there are any.

    What int8 adds to the error of one layer, about 0.0001 of its output a rounding, is nothing beside what a form
    loses that is worth its while; whole networks are tried as their int8 files.
    """
    options = found.options
    if data is None:
        return Appraised(found.seen, found.base, options, by_weights(options), (), {}, seed, precision)
    model, batches = found.seen.model, first_batches(data.fitted, looked_at(options))
    gradients = sensitivity.moments(model, options, batches, seed)
    measures = by_data(model, options, batches, gradients, seed, progress)
    return Appraised(found.seen, found.base, options, measures, (data,), gradients, seed, precision)


def appraise(
    seen: Capture,
    forms: Sequence[Form],
    policy: Predicate | None,
    allow_growth: bool,
    data: Calibration | None,
    seed: int,
    progress: bool,
) -> Appraised:
    """Gathers the candidates and their errors."""
    return rate(opened(seen, forms, policy, allow_growth), data, seed, progress)


def best_forms(rated: Appraised) -> Plan:
    """For every site the candidate that costs the network least, of those at about the price of the cheapest."""
    errors = next(iter(rated.measures.values()))
    best = {}
    for name, changes in rated.options.items():
        limit = ALIKE * min(change.macs_after for change in changes)
        alike = [change for change in changes if change.macs_after <= limit]
        best[name] = min(alike, key=lambda change: errors[change.name, change.form.label])
    steps = (best.get(step.name, step) for step in rated.base.steps)
    return dataclasses.replace(rated.base, steps=tuple(steps))


@dataclass(frozen=True)
class Best:
    """The plan to carry out, every plan it was chosen from, and what the whole networks took that were timed."""

    plan: Plan
    judged: tuple[Judged, ...]
    timings: tuple[Timing, ...] = ()


def best_plan(
    rated: Appraised, budget: Budget, latencies: Latencies | None, progress: bool = False, *, confirm: bool = True
) -> Best:
    """The plan to carry out under a budget, and what it was chosen from.

    Args:
        rated: the candidates.
        budget: what the converted model may cost.
        latencies: milliseconds of every site.
        progress: whether to show a bar while timing.
        confirm: with a latency budget, whether the best plan is timed whole where that can be done.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    task = problem(rated.seen, rated.base, rated.options, budget, latencies)
    if budget.lost is not None:
        return _cheapest(rated, task, budget.lost)
    plans = distinct(task, rated.measures)
    tried = contest(rated, plans)
    name = next(item.measure for item in tried if item.taken)
    plan, timings = confirmed(task, name, rated.measures[name], plans[name], progress) if confirm else (plans[name], ())
    if plan != plans[name]:
        error = trial(rated, plan)[1] if rated.data else math.nan
        tried = [dataclasses.replace(item, taken=False) for item in tried]
        tried.append(Judged(f"{name}, revised by the clock", plan.macs_after, error, taken=True))
    return Best(plan, tuple(tried), timings)


def contest(rated: Appraised, plans: Mapping[str, Plan], alone: bool = False) -> list[Judged]:
    """The plans on trial; the one that loses least is taken, without images the first.

    A single plan has no rival and is tried only if it is to be tried `alone`.
    """
    untried = not rated.data or (len(plans) == 1 and not alone)
    errors = {name: math.nan if untried else trial(rated, plan)[1] for name, plan in plans.items()}
    best = next(iter(plans)) if untried else min(errors, key=lambda name: errors[name])
    return [Judged(name, plan.macs_after, errors[name], name == best) for name, plan in plans.items()]


def trial(rated: Appraised, plan: Plan, images: int | None = None, jointly: bool = False) -> tuple[nn.Module, float]:
    """The model of a plan, fitted to some of the images, and its relative error on those that are held back.

    Those that it was rated on, where it is not said how many; then `EFFORT` is enough, too: on ResNet-20 and DnCNN the
    errors of nine plans come out 5 % lower to 9 % higher, in two thirds of the time.

    In int8 it is the int8 file, and the network as it is has an error, too.
    """
    (data,) = rated.data
    if not plan.changes:
        return _shipped(rated, rated.seen.model, 0.0)
    converted, done = operate(rated.seen.model, plan, rated.seen.example)
    how: dict[str, Any] = {"seed": rated.seed, "progress": False, "jointly": jointly}
    if images is None:  # of more images than it was rated on there are other metrics
        metrics = {name: sensitivity.mixed(rated.gradients[name]) for name in done.changes}
        how |= {"metrics": metrics, "effort": EFFORT}
    part = Calibration(tuple(first_batches(data.fitted, images or looked_at(rated.options))), data.held_back)
    fitted = reconstruct(rated.seen, converted, done, part, **how)
    return _shipped(rated, converted, fitted.error_after)


def _shipped(rated: Appraised, model: nn.Module, error: float) -> tuple[nn.Module, float]:
    """A model as the file that ships computes it, and its error on held-back images.

    Args:
        rated: says in which precision.
        model: in float.
        error: of it.

    Raises:
        ExportError: it is to be int8, and cannot be.
    """
    if rated.precision == "fp32":
        return model, error
    from convsurgeon.int8.module import as_int8

    (data,) = rated.data
    rounded = as_int8(model, data.fitted)
    return rounded, OutputJudge(rated.seen.model, data.held_back).error(rounded)


def _cheapest(rated: Appraised, task: Problem, lost: float) -> Best:
    """The cheapest plan within an error: closed in on, as the network's error grows with what the layers may lose."""
    name, errors = next(iter(rated.measures.items()))
    if not rated.data:  # the mean share of energy lost, over the layers that may change
        plan = task.cheapest(errors, lost * len(task.options))
        return Best(plan, (Judged(name, plan.macs_after, math.nan, taken=True),))
    most = (max(errors[site, change.form.label] for change in changes) for site, changes in task.options.items())
    worst = sum(most) or 1.0
    bracket = Bracket(good=worst * 1e-6, bad=worst)
    tried: list[tuple[Plan, float]] = []
    while len(tried) < _TRIALS and not bracket.closed:
        allowed = bracket.middle
        plan = task.cheapest(errors, allowed)
        error = trial(rated, plan)[1]
        tried.append((plan, error))
        bracket = bracket.narrowed(allowed, error / lost, enough=error <= lost)
    kept = [plan for plan, error in tried if error <= lost]
    if not kept:
        raise BudgetError(f"budget: lost={lost:g} leaves every layer dense; the least tried loses {tried[-1][1]:.3g}")
    best = min(kept, key=lambda plan: plan.macs_after)
    return Best(best, tuple(Judged(name, plan.macs_after, error, plan is best) for plan, error in tried))
