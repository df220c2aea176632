"""Plans under a budget: the candidates of every site, what each costs and loses, and the choice between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from convsurgeon.base.errors import BudgetError
from convsurgeon.graph.capture import Capture
from convsurgeon.planning.plan import Change, Plan, Skip
from convsurgeon.runtime.latencies import Latencies, pays
from convsurgeon.search.budget import Budget
from convsurgeon.search.knapsack import Options, choose, least
from convsurgeon.search.scores import Measures

Errors = Mapping[tuple[str, str], float]
"""(site, label of a form) -> error, by one measure."""

_TOLD = 0.2
"""Share of the weights in linear layers from which on they are named where a budget cannot be reached."""

_KEPT = "kept dense: the budget spends it better elsewhere"


@dataclass(frozen=True)
class Problem:
    """A budget over the candidates of a captured model; `base` is the plan in which nothing is decided yet."""

    seen: Capture
    base: Plan
    options: Mapping[str, Sequence[Change]]
    limits: Mapping[str, float]
    table: Latencies | None

    def plan(self, errors: Errors) -> Plan:
        """The best choice by a measure.

        Raises:
            BudgetError: the budget cannot be reached; says how far it goes, and which layers stand in the way.
        """
        if not self.limits:
            return self._first()
        sites = [self._site(name, changes, errors) for name, changes in self.options.items()]
        room = [limit - self._fixed(kind) for kind, limit in self.limits.items()]
        chosen = choose(sites, room)
        if chosen is None:
            raise BudgetError(self._why(sites, room))
        forms = {
            name: changes[option - 1] if option else None
            for (name, changes), option in zip(self.options.items(), chosen, strict=True)
        }
        return self._with(forms)

    def cheapest(self, errors: Errors, allowed: float) -> Plan:
        """The choice of fewest MACs whose errors by a measure sum to no more than `allowed`."""
        sites = []
        for name, changes in self.options.items():
            macs = [float(changes[0].macs_before), *(float(change.macs_after) for change in changes)]
            lost = [0.0, *(errors[name, change.form.label] for change in changes)]
            sites.append(Options(np.array(macs), np.array(lost)[:, None]))
        chosen = choose(sites, [allowed])
        assert chosen is not None  # nothing changed, nothing lost
        pairs = zip(self.options.items(), chosen, strict=True)
        return self._with({name: changes[option - 1] if option else None for (name, changes), option in pairs})

    def _first(self) -> Plan:
        """For every site its first candidate that pays: what `latency="faster"` asks for by itself."""
        paying = {
            name: [change for change in changes if self._pays(name, change)] for name, changes in self.options.items()
        }
        return self._with({name: changes[0] if changes else None for name, changes in paying.items()})

    def _with(self, forms: Mapping[str, Change | None]) -> Plan:
        steps: list[Change | Skip] = []
        for step in self.base.steps:
            taken = forms.get(step.name)
            kept = Skip(step.site, _KEPT) if step.name in forms else step
            steps.append(kept if taken is None else taken)
        return Plan(tuple(steps), self.base.cost, self.base.example)

    def _site(self, name: str, changes: Sequence[Change], errors: Errors) -> Options:
        """Dense first, then the changes; one that costs or slows more than dense is never better than it."""
        costs = [[self._cost(kind, name, None, changes[0]) for kind in self.limits]]
        costs += [[self._cost(kind, name, change, change) for kind in self.limits] for change in changes]
        found = [0.0, *(errors[name, change.form.label] for change in changes)]
        allowed = [0.0, *(0.0 if self._pays(name, change) else np.inf for change in changes)]
        table = np.array(costs, dtype=np.float64).reshape(len(found), len(self.limits))
        table[np.isinf(allowed)] = np.inf
        return Options(np.array(found) + np.array(allowed), table)

    def _pays(self, name: str, change: Change) -> bool:
        """Whether a change is fast enough, where speed is asked for."""
        return self.table is None or pays(self.table, name, change.form)

    def _cost(self, kind: str, name: str, change: Change | None, any_change: Change) -> float:
        site = any_change.site
        if kind == "latency":
            assert self.table is not None
            form = None if change is None else change.form
            return self.table.ms(name, form) if self.table.has(name, form) else float("inf")
        if kind == "macs":
            return float(site.macs if change is None else change.macs_after)
        params = site.params if change is None else change.params_after
        return float(params) * (1.0 if kind == "params" else _bytes_each(self.seen))

    def _fixed(self, kind: str) -> float:
        """What everything costs that is no candidate."""
        sites = {name: changes[0] for name, changes in self.options.items()}
        return whole(self.seen, self.table, kind) - sum(
            self._cost(kind, name, None, change) for name, change in sites.items()
        )

    def _why(self, sites: Sequence[Options], room: Sequence[float]) -> str:
        """The least of each limited cost that can be reached, and the layers that hold most of it."""
        reached = least(sites) if sites else np.zeros(len(room))
        for index, (kind, limit) in enumerate(self.limits.items()):
            if reached[index] > room[index] or not sites:
                total = whole(self.seen, self.table, kind)
                lowest = (self._fixed(kind) + reached[index]) / total
                return (
                    f"budget: {kind} of {limit / total:.3f} cannot be reached; the least is {lowest:.3f}, most of it "
                    f"in {', '.join(self._largest(sites, index))}; allow more, lower ranks, or a wider policy"
                    + (_in_linear_layers(self.seen) if kind in ("params", "bytes") else "")
                )
        return "budget: each limit can be reached, but not all at once; allow more of one of them"

    def _largest(self, sites: Sequence[Options], index: int) -> list[str]:
        """The three convs that hold most of what is left, changed or not."""
        left = {name: float(site.costs[:, index].min()) for name, site in zip(self.options, sites, strict=True)}
        kind, table = tuple(self.limits)[index], self.table
        skips = {skip.name: skip.site for skip in self.base.skipped}
        if kind == "latency" and table is not None:
            left |= {name: table.ms(name, None) for name in skips if table.has(name, None)}
        elif kind != "latency":
            each = _bytes_each(self.seen) if kind == "bytes" else 1.0
            left |= {name: float(site.macs if kind == "macs" else site.params * each) for name, site in skips.items()}
        return sorted(left, key=lambda name: -left[name])[:3]


@dataclass(frozen=True)
class Judged:
    """A plan that was weighed: the measure it was made by, its MACs, and the network's error (nan: untried)."""

    measure: str
    macs: int
    error: float
    taken: bool


def problem(
    seen: Capture, base: Plan, options: Mapping[str, Sequence[Change]], budget: Budget, table: Latencies | None
) -> Problem:
    """The budget's limits on a model.

    Raises:
        BudgetError: a latency budget without a table of latencies.
    """
    if budget.latency is not None and table is None:
        raise BudgetError("budget: latency needs measured milliseconds; none were handed in")
    limits = budget.limits(lambda kind: whole(seen, table, kind))
    return Problem(seen, base, options, limits, table if budget.latency is not None else None)


def whole(seen: Capture, table: Latencies | None, kind: str) -> float:
    """What the original has of a cost."""
    if kind == "latency":
        assert table is not None
        return table.total_ms
    counted = {"macs": seen.cost.macs, "params": seen.cost.params, "bytes": seen.cost.weight_bytes}
    return float(counted[kind])


def predicted(table: Latencies, plan: Plan) -> float:
    """Milliseconds of the whole network once a plan is carried out, by its parts; nan where one was not measured."""
    changes = plan.changes.values()
    if not all(table.has(change.name, change.form) for change in changes):
        return math.nan
    gains = (table.ms(change.name, None) - table.ms(change.name, change.form) for change in changes)
    return table.total_ms - sum(gains)


def distinct(problem: Problem, measures: Measures) -> dict[str, Plan]:
    """Measure -> plan, of those that differ."""
    plans: dict[str, Plan] = {}
    for name, errors in measures.items():
        made = problem.plan(errors)
        if made not in plans.values():
            plans[name] = made
    return plans


def _in_linear_layers(seen: Capture) -> str:
    """What to do where a good part of the weights is in no conv at all, as the end of a message."""
    linears = [module for module in seen.model.modules() if isinstance(module, nn.Linear)]
    share = sum(linear.weight.numel() for linear in linears) / max(1, seen.cost.params)
    return f"; linear layers hold {share:.2f} of it: linear_as_conv opens them" if share >= _TOLD else ""


def _bytes_each(seen: Capture) -> float:
    return seen.cost.weight_bytes / max(1, seen.cost.params)
