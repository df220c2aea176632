"""Whole networks timed, and a latency table corrected by what was measured.

A table knows every layer beside other neighbours than a plan gives it, so the whole may take more or less than the sum
of its parts. Law: a table corrected by a plan predicts of that plan what was measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.planning.plan import Plan
from convsurgeon.runtime.latencies import Latencies, NetworkTime, predict
from convsurgeon.search.study import Study
from convsurgeon.search.trial import Trial
from convsurgeon.timing.verdict import Verdict

_LEAST_FACTOR, _MOST_FACTOR = 0.5, 2.0
"""Bounds of a correction: beyond them the machine was disturbed."""


def time_plan(study: Study, plan: Plan, table: Latencies | None = None) -> Trial:
    """Return a trial with the plan's network timed as a whole.

    Args:
        study: the context.
        plan: what to time.
        table: that predicts, if not the study's own.

    Returns:
        The trial, without a measurement where the table is of another machine or has no times to be confirmed.
    """
    table = study.table if table is None else table
    assert table is not None
    trial = Trial(plan, dense_ms=table.total_ms, predicted_ms=predict(table, plan))
    times = table.time(study.seen, [plan], progress=study.progress)
    if times is None:
        return trial
    return dataclasses.replace(trial, network=times[0])


@dataclass(frozen=True)
class CorrectedTable:
    """A table after a network of one plan was timed: its layers as found there, in other forms in proportion.

    Args:
        table: as it was before.
        found: (site, form's label) -> milliseconds of the layers of that plan.
        ratios: site -> measured over predicted.
        factor: the same for sites that were dense in that network.
    """

    table: Latencies
    found: Mapping[tuple[str, str], float]
    ratios: Mapping[str, float]
    factor: float

    @staticmethod
    def of(table: Latencies, plan: Plan, whole: NetworkTime) -> CorrectedTable:
        """Return the table that predicts what was measured."""
        changes = plan.changes.values()
        predicted = {change.name: table.ms(change.name, change.form) for change in changes}
        measured = {name: whole.sites.get(name, ms) for name, ms in predicted.items()}
        others = table.total_ms - sum(table.ms(name, None) for name in predicted)
        least = _LEAST_FACTOR * sum(predicted.values())  # a disturbed measurement may leave nothing for the sites
        scale = max(whole.total_ms - others, least) / max(sum(measured.values()), 1e-12)
        found = {(change.name, change.form.label): scale * measured[change.name] for change in changes}
        ratios = {name: scale * measured[name] / max(ms, 1e-12) for name, ms in predicted.items()}
        factor = median_low(ratios.values()) if ratios else 1.0  # one layer's bad luck is not the others'
        return CorrectedTable(table, found, ratios, min(max(factor, _LEAST_FACTOR), _MOST_FACTOR))

    @property
    def total_ms(self) -> float:
        """The original network."""
        return self.table.total_ms

    def has(self, site: str, form: Form | None) -> bool:
        """Return whether this was measured."""
        return self.table.has(site, form)

    def ms(self, site: str, form: Form | None) -> float:
        """Return the milliseconds of a site."""
        if form is None:
            return self.table.ms(site, None)
        return self.found.get((site, form.label), self.ratios.get(site, self.factor) * self.table.ms(site, form))

    def time(self, seen: Capture, plans: Sequence[Plan], *, progress: bool = True) -> tuple[NetworkTime, ...] | None:
        """Time whole networks by the table as it was."""
        return self.table.time(seen, plans, progress=progress)

    def with_all_cores(self, seen: Capture, plan: Plan, *, progress: bool = True) -> Verdict | None:
        """Compare by the table as it was."""
        return self.table.with_all_cores(seen, plan, progress=progress)
