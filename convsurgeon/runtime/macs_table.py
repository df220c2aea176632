"""MACs in place of milliseconds, where a network cannot be timed."""

from __future__ import annotations

from collections.abc import Sequence

from convsurgeon.base.precision import Precision
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.planning.plan import Plan
from convsurgeon.runtime.latencies import NetworkTime


class MacsTable:
    """Answers a latency table's questions with MACs; it cannot time whole networks."""

    def __init__(self, seen: Capture, precision: Precision) -> None:
        self.precision = precision
        self._sites = {site.name: site for site in seen.sites}
        self.total_ms = float(seen.cost.macs)

    def has(self, site: str, form: Form | None) -> bool:
        """Return whether the site is known."""
        return site in self._sites

    def ms(self, site: str, form: Form | None) -> float:
        """Return the MACs of all calls of a site, as it is or in a form."""
        one = self._sites[site]
        if form is None:
            return float(one.macs)
        return float(sum(one.images(call) * form.macs(one.geometry, one.size(call)) for call in one.calls))

    def time(
        self, seen: Capture, plans: Sequence[Plan], *, all_cores: bool = False, progress: bool = True
    ) -> tuple[NetworkTime, ...] | None:
        """Return None: MACs are not measured."""
        return None
