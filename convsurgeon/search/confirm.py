r"""Plans within a latency, timed as whole networks, and made again where the sum of their parts and the whole disagree.

A table knows every layer in networks of one form. In a mixed network its neighbours are others, so the whole may take
more or less than its parts. Where that is beyond noise, the table is corrected by what was measured and the plan made
again, `ROUNDS` times at most. Law: a table corrected by a plan predicts of that plan exactly what was measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convsurgeon.base import processes as world
from convsurgeon.base.errors import BudgetError
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.planning.plan import Plan
from convsurgeon.runtime.latencies import Latencies, NetworkTime
from convsurgeon.search.choice import Errors, Problem, predicted

TOLERANCE = 0.03
"""Difference of sum and whole, as a share, from which on a plan is revised, or more where the machine is noisier:
two measurements differ by 1 to 2 % if nothing else runs, and by 5 to 10 % if much does."""

ROUNDS = 3

_BOUNDS = (0.5, 2.0)


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
    def by(table: Latencies, plan: Plan, whole: NetworkTime) -> Corrected:
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

    def time(
        self, seen: Capture, plans: Sequence[Plan], *, all_cores: bool = False, progress: bool
    ) -> tuple[NetworkTime, ...] | None:
        """Times whole networks as the table does."""
        return self.table.time(seen, plans, all_cores=all_cores, progress=progress)


@dataclass(frozen=True)
class _Tried:
    plan: Plan
    timing: Timing


def confirmed(task: Problem, name: str, errors: Errors, plan: Plan, progress: bool) -> tuple[Plan, tuple[Timing, ...]]:
    """The plan, made again by the same measure until its whole network takes what it promised.

    The clock revises a plan, it does not choose between plans: which of several is just within a limit is luck.

    Args:
        task: the budget.
        name: of the measure that the plan was made by.
        errors: by this measure.
        plan: the best choice by it.
        progress: whether a bar appears when it takes long.

    Returns:
        The last plan that is what was asked for, or the fastest where none is; and every network that was timed. None
        was where the table cannot time whole networks, or is another machine's.
    """
    clock = task.table
    tried: list[_Tried] = []
    limit_ms = task.limits.get("latency", float("inf"))
    for number in range(1, ROUNDS + 1):
        whole = time_plan(clock, task.seen, plan, progress)
        if whole is None or task.table is None:
            break
        tried.append(_Tried(plan, timing(name, number, limit_ms, task.table, plan, whole)))
        if tried[-1].timing.agrees:
            break
        task = dataclasses.replace(task, table=Corrected.by(task.table, plan, whole))
        again = _again(task, errors)
        if again is None or again == plan:
            break
        plan = again
    return _best(tried) if tried else (plan, ())


def time_plan(
    table: Latencies | None, seen: Capture, plan: Plan, progress: bool, *, all_cores: bool = False
) -> NetworkTime | None:
    """Time the whole network of a plan, if the table can do that here; of several processes the first does it."""
    if table is None:
        return None
    found = world.shared(lambda: table.time(seen, [plan], all_cores=all_cores, progress=progress))
    return found[0] if found else None


def timing(name: str, number: int, limit_ms: float, table: Latencies, plan: Plan, whole: NetworkTime) -> Timing:
    """What a table promised of a plan, beside what its whole network took."""
    slower = [site for site, ms in whole.sites.items() if ms > table.ms(site, None)]
    return Timing(
        name, number, predicted(table, plan), whole.total_ms, table.total_ms, limit_ms, tuple(slower), whole.spread
    )


def _again(task: Problem, errors: Errors) -> Plan | None:
    try:
        return task.plan(errors)
    except BudgetError:  # by the corrected table; the nearest of what was measured stands
        return None


def _best(tried: Sequence[_Tried]) -> tuple[Plan, tuple[Timing, ...]]:
    kept = [one for one in tried if one.timing.kept]
    best = kept[-1] if kept else min(tried, key=lambda one: one.timing.measured_ms)
    return best.plan, tuple(dataclasses.replace(one.timing, taken=one is best) for one in tried)
