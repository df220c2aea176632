r"""Plans within a latency, timed as whole networks, and made again where the sum of their parts and the whole disagree.

A table knows every layer in networks of one form. In a mixed network its neighbours are others, so the whole may take
more or less than its parts. Where that is beyond noise, the table is corrected by what was measured and the plan made
again, `ROUNDS` times at most. Law: a table corrected by a plan predicts of that plan exactly what was measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from convsurgeon.base.errors import BudgetError
from convsurgeon.budget.problem import Latencies, Problem, distinct, predicted
from convsurgeon.budget.rating import Measures
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.planning.plan import Plan

TOLERANCE = 0.03
"""Difference of sum and whole, as a share, from which on a plan is revised, or more where the machine is noisier:
two measurements differ by 1 to 2 % if nothing else runs, and by 5 to 10 % if much does."""

ROUNDS = 3

_BOUNDS = (0.5, 2.0)


@dataclass(frozen=True)
class Whole:
    """What a whole converted network took, as milliseconds of a machine on which the original takes the table's."""

    total_ms: float
    sites: Mapping[str, float]
    """Of these the changed sites, each in the company of the others."""
    spread: float = 0.0
    """Half the range of `total_ms` over the passes, as a share of it."""


Stopwatch = Callable[[Sequence[Plan]], tuple[Whole, ...]]
"""What each plan's network takes, here and now."""


@runtime_checkable
class Timer(Protocol):
    """A table that can also time whole networks."""

    def stopwatch(self, seen: Capture, progress: bool) -> Stopwatch | None:
        """Times the networks of plans of a model; None where it was not this machine that the table is of."""
        ...


@dataclass(frozen=True)
class Timing:
    """A plan that was timed as a whole: the measure and the round it was made in, what was promised and found."""

    measure: str
    round: int
    predicted_ms: float
    measured_ms: float
    dense_ms: float
    limit_ms: float
    """Infinite where no limit was set: every layer is to be faster, that is all."""
    slower: tuple[str, ...]
    """Changed layers that took longer than dense in this network."""
    spread: float
    """Of the measurement, as a share: a machine at work is noisy."""
    taken: bool = False

    @property
    def agrees(self) -> bool:
        """Whether sum and whole are the same but for noise, and no layer is slower than before."""
        return abs(self.measured_ms / self.predicted_ms - 1) <= self.tolerance and not self.slower

    @property
    def kept(self) -> bool:
        """Whether the measured network is what was asked for."""
        return self.measured_ms <= min(self.limit_ms, self.dense_ms) * (1 + self.tolerance) and not self.slower

    @property
    def tolerance(self) -> float:
        """What is no difference, as a share."""
        return max(TOLERANCE, self.spread)


@dataclass(frozen=True)
class Corrected:
    """A table after a network of one plan was timed: each of its layers as found there, in other forms in proportion.

    `factor` is for layers that were dense in that network: what the company did to the others it may do to them.
    """

    table: Latencies
    found: Mapping[tuple[str, str], float]
    ratios: Mapping[str, float]
    factor: float

    @staticmethod
    def by(table: Latencies, plan: Plan, whole: Whole) -> Corrected:
        """The table that predicts what was measured."""
        changes = plan.changes.values()
        others = table.total_ms - sum(table.ms(change.name, None) for change in changes)
        own = {change.name: whole.sites.get(change.name, table.ms(change.name, change.form)) for change in changes}
        thought = sum(table.ms(change.name, change.form) for change in changes)
        least = _BOUNDS[0] * thought  # what is left for them may be nothing if the machine was disturbed
        scale = max(whole.total_ms - others, least) / max(sum(own.values()), 1e-12)
        found = {(change.name, change.form.label): scale * own[change.name] for change in changes}
        ratios = {
            change.name: scale * own[change.name] / max(table.ms(change.name, change.form), 1e-12) for change in changes
        }
        factor = sum(found.values()) / max(thought, 1e-12)
        return Corrected(table, found, ratios, min(max(factor, _BOUNDS[0]), _BOUNDS[1]))

    @property
    def total_ms(self) -> float:
        """The network as it is."""
        return self.table.total_ms

    def has(self, site: str, form: Form | None) -> bool:
        """Whether this was measured."""
        return self.table.has(site, form)

    def ms(self, site: str, form: Form | None) -> float:
        """Milliseconds of a site."""
        if form is None:
            return self.table.ms(site, None)
        return self.found.get((site, form.label), self.ratios.get(site, self.factor) * self.table.ms(site, form))


@dataclass(frozen=True)
class _Tried:
    plan: Plan
    timing: Timing


def confirmed(task: Problem, measures: Measures, progress: bool) -> tuple[dict[str, Plan], tuple[Timing, ...]]:
    """Measure -> plan, of those that differ, each confirmed by timing it whole where the table can do that.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    plans = distinct(task, measures)
    if task.table is None or not isinstance(task.table, Timer):
        return plans, ()
    timed = task.table.stopwatch(task.seen, progress)
    if timed is None:
        return plans, ()
    tasks = dict.fromkeys(plans, task)
    tried: dict[str, list[_Tried]] = {name: [] for name in plans}
    for number in range(1, ROUNDS + 1):
        now = dict(zip(plans, timed(list(plans.values())), strict=True))
        for name, plan in plans.items():
            tried[name].append(_Tried(plan, _timing(name, number, tasks[name], plan, now[name])))
        off = {name: plan for name, plan in plans.items() if not tried[name][-1].timing.agrees}
        plans = {}
        for name, plan in off.items():
            table = tasks[name].table
            assert table is not None
            tasks[name] = dataclasses.replace(tasks[name], table=Corrected.by(table, plan, now[name]))
            again = _again(tasks[name], measures, name)
            if again is not None and again != plan:
                plans[name] = again
        if not plans:
            break
    return _best(tried)


def _timing(name: str, number: int, task: Problem, plan: Plan, whole: Whole) -> Timing:
    table = task.table
    assert table is not None
    slower = [site for site, ms in whole.sites.items() if ms > table.ms(site, None)]
    limit = task.limits.get("latency", float("inf"))
    return Timing(
        name, number, predicted(table, plan), whole.total_ms, table.total_ms, limit, tuple(slower), whole.spread
    )


def _again(task: Problem, measures: Measures, name: str) -> Plan | None:
    try:
        return task.plan(measures[name])
    except BudgetError:  # by the corrected table; the nearest of what was measured stands
        return None


def _best(tried: Mapping[str, Sequence[_Tried]]) -> tuple[dict[str, Plan], tuple[Timing, ...]]:
    """Of every measure its last plan that is what was asked for; the fastest where none is."""
    chosen = {}
    for name, several in tried.items():
        kept = [one for one in several if one.timing.kept]
        chosen[name] = kept[-1] if kept else min(several, key=lambda one: one.timing.measured_ms)
    keeping = {name: one for name, one in chosen.items() if one.timing.kept} or chosen
    plans: dict[str, Plan] = {}
    for name, one in keeping.items():
        if one.plan not in plans.values():
            plans[name] = one.plan
    every = [one for several in tried.values() for one in several]
    return plans, tuple(
        dataclasses.replace(one.timing, taken=plans.get(one.timing.measure) is one.plan) for one in every
    )
