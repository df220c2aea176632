"""What a search asks about milliseconds, without loading the runtime that measures them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from convsurgeon.base.precision import Precision
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.planning.plan import Plan
from convsurgeon.timing.verdict import Verdict

BUSY = 0.25
"""Share of the processor that others take from which on the machine counts as busy."""

GAIN = 1.1
"""A layer changes for speed only where the table says that it gets this much faster."""


@dataclass(frozen=True)
class NetworkTime:
    """What a whole converted network took, scaled so that the dense network takes the table's `total_ms`."""

    total_ms: float
    sites: Mapping[str, float]
    """Milliseconds of the changed sites in this network."""
    spread: float = 0.0
    """Share by which `total_ms` may be off, with 95 % confidence in every pass."""
    slower: tuple[str, ...] = ()
    """Changed sites that took more than as they were in every pass."""
    busy: float = 0.0
    """Share of the processor that others took meanwhile."""


class Latencies(Protocol):
    """Milliseconds of every site as it is (`form` None) and in other forms, and of the whole network.

    A `LatencyTable` is one. So is any object that answers the same questions, for instance one of made-up times.
    """

    @property
    def total_ms(self) -> float:
        """Return the milliseconds of the dense network."""

    def has(self, site: str, form: Form | None) -> bool:
        """Return whether this was measured."""

    def ms(self, site: str, form: Form | None) -> float:
        """Return the milliseconds of a site."""

    def time(self, seen: Capture, plans: Sequence[Plan], *, progress: bool) -> tuple[NetworkTime, ...] | None:
        """Time the whole network of every plan; None where that is not possible here."""

    def with_all_cores(self, seen: Capture, plan: Plan, *, progress: bool) -> Verdict | None:
        """Compare a plan's network with the original on all cores, where that differs from the table's threads.

        None where it is not possible here, or where a busy machine would decide.
        """


class MacsTable:
    """MACs in place of milliseconds, where a network cannot be timed."""

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
        return float(one.macs if form is None else one.macs_as(form))

    def time(self, seen: Capture, plans: Sequence[Plan], *, progress: bool = True) -> tuple[NetworkTime, ...] | None:
        """Return None: MACs are not measured."""
        return None

    def with_all_cores(self, seen: Capture, plan: Plan, *, progress: bool = True) -> Verdict | None:
        """Return None, likewise."""
        return None


def pays(table: Latencies, site: str, form: Form) -> bool:
    """Return whether a form is clearly faster than the site as it is."""
    return table.has(site, form) and table.ms(site, None) >= GAIN * table.ms(site, form)


def predict(table: Latencies, plan: Plan) -> float:
    """Return the milliseconds of a plan's network by a table; nan where one of its forms was not measured."""
    changes = plan.changes.values()
    if not all(table.has(change.name, change.form) for change in changes):
        return float("nan")
    return table.total_ms - sum(table.ms(one.name, None) - table.ms(one.name, one.form) for one in changes)
