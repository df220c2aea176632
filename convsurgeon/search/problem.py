"""The choice of one change per site under limits: what each costs, what each loses, and why a limit cannot be met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from convsurgeon.base.errors import BudgetError
from convsurgeon.planning.plan import Change, Plan, Skip
from convsurgeon.runtime.latencies import Latencies, pays
from convsurgeon.search.goal import Budget
from convsurgeon.search.knapsack import Options, choose, least
from convsurgeon.search.study import Study

KEPT = "kept as it was: rewriting other layers gains more for the same loss"

_LINEAR_SHARE = 0.2
"""Share of the weights in linear layers from which on a message names them."""


@dataclass(frozen=True)
class Problem:
    """A budget over the candidates of a study.

    Args:
        study: the candidates and their scores.
        limits: most of each kind of cost, in its unit.
        table: milliseconds, where they are limited; a corrected table once networks were timed.
    """

    study: Study
    limits: Mapping[str, float]
    table: Latencies | None = None

    @staticmethod
    def of(study: Study, budget: Budget) -> Problem:
        """Return the problem that a budget poses."""
        if budget.latency is not None and study.table is None:
            raise BudgetError("budget: latency needs measured milliseconds, and there is no latency table")
        limits = budget.limits(lambda kind: _whole(study, kind))
        return Problem(study, limits, study.table if budget.latency is not None else None)

    @cached_property
    def plan(self) -> Plan:
        """The plan with the least summed score.

        Raises:
            BudgetError: the budget cannot be reached; says how far it goes, and which layers stand in the way.
        """
        sites = [self._options(name, changes) for name, changes in self.study.options.items()]
        room = [limit - self._fixed(kind) for kind, limit in self.limits.items()]
        chosen = choose(sites, room)
        if chosen is None:
            raise BudgetError(self._why(sites, room))
        picked = dict(zip(self.study.options, chosen, strict=True))
        steps: list[Change | Skip] = []
        for step in self.study.base.steps:
            option = picked.get(step.name)
            if option is None:
                steps.append(step)
            else:
                steps.append(self.study.options[step.name][option - 1] if option else Skip(step.site, KEPT))
        return Plan(tuple(steps), self.study.base.cost, self.study.base.example)

    def _options(self, name: str, changes: Sequence[Change]) -> Options:
        """Return a site's options, dense first; a change that is not faster although speed is asked for is barred."""
        costs = [[self._cost(kind, name, None) for kind in self.limits]]
        scores = [0.0]
        for change in changes:
            barred = self.table is not None and not pays(self.table, name, change.form)
            costs.append([np.inf if barred else self._cost(kind, name, change) for kind in self.limits])
            scores.append(np.inf if barred else self.study.scores[name, change.form.label])
        return Options(np.array(scores), np.array(costs, dtype=np.float64).reshape(len(scores), len(self.limits)))

    def _cost(self, kind: str, name: str, change: Change | None) -> float:
        """Return one kind of cost of a site, as it is or changed."""
        if kind == "latency":
            assert self.table is not None
            form = None if change is None else change.form
            return self.table.ms(name, form) if self.table.has(name, form) else np.inf
        site = self.study.options[name][0].site
        if kind == "macs":
            return float(site.macs if change is None else change.macs_after)
        params = site.params if change is None else change.params_after
        return float(params) * (1.0 if kind == "params" else self._bytes_per_parameter)

    def _fixed(self, kind: str) -> float:
        """Return the cost of everything that has no candidates."""
        return _whole(self.study, kind) - sum(self._cost(kind, name, None) for name in self.study.options)

    @property
    def _bytes_per_parameter(self) -> float:
        cost = self.study.seen.cost
        return cost.weight_bytes / max(1, cost.params)

    def _why(self, sites: Sequence[Options], room: Sequence[float]) -> str:
        """Return the least of the first limit that cannot be reached, and the layers that hold most of it."""
        reached = least(sites) if sites else np.zeros(len(room))
        for index, (kind, limit) in enumerate(self.limits.items()):
            if reached[index] > room[index] or not sites:
                whole = _whole(self.study, kind)
                lowest = (self._fixed(kind) + reached[index]) / whole
                return (
                    f"budget: {kind} of {limit / whole:.3g} cannot be reached; the least is {lowest:.3f}, most of it "
                    f"in {', '.join(self._largest(sites, index))}; allow more, lower ranks, or a wider policy"
                    + (self._linear_hint() if kind in ("params", "bytes") else "")
                )
        return "budget: each limit can be reached, but not all at once; allow more of one of them"

    def _largest(self, sites: Sequence[Options], index: int) -> list[str]:
        """Return the three convs that hold most of what is left, changed or not."""
        left = {name: float(site.costs[:, index].min()) for name, site in zip(self.study.options, sites, strict=True)}
        kind = tuple(self.limits)[index]
        for skip in self.study.base.skipped:
            if kind == "latency" and self.table is not None and self.table.has(skip.name, None):
                left[skip.name] = self.table.ms(skip.name, None)
            elif kind != "latency":
                each = self._bytes_per_parameter if kind == "bytes" else 1.0
                left[skip.name] = skip.site.macs if kind == "macs" else skip.site.params * each
        return sorted(left, key=lambda name: -left[name])[:3]

    def _linear_hint(self) -> str:
        """Return what to do where a good part of the weights is in linear layers, as the end of a message."""
        linears = [module for module in self.study.seen.model.modules() if isinstance(module, nn.Linear)]
        share = sum(linear.weight.numel() for linear in linears) / max(1, self.study.seen.cost.params)
        return f"; linear layers hold {share:.2f} of it: linear_as_conv opens them" if share >= _LINEAR_SHARE else ""


def _whole(study: Study, kind: str) -> float:
    """Return what the original has of a cost."""
    if kind == "latency":
        assert study.table is not None
        return study.table.total_ms
    cost = study.seen.cost
    return float({"macs": cost.macs, "params": cost.params, "bytes": cost.weight_bytes}[kind])
