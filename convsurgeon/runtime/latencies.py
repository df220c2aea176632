"""What a search asks about milliseconds, without loading the runtime that measures them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from convsurgeon.base.errors import LatencyError
from convsurgeon.base.precision import PRECISIONS, Precision
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.planning.plan import Plan

GAIN = 1.1
"""A layer changes for speed only where the table says that it gets this much faster."""


@dataclass(frozen=True)
class NetworkTime:
    """What a whole converted network took, scaled so that the dense network takes the table's `total_ms`."""

    total_ms: float
    sites: Mapping[str, float]
    """Milliseconds of the changed sites in this network."""
    spread: float = 0.0
    """Half the range of `total_ms` over the passes, as a share of it."""


class Latencies(Protocol):
    """Milliseconds of every site as it is (`form` None) and in other forms, and of the whole network.

    A `LatencyTable` is one. So is any object that answers the same questions, for instance one of made-up times.
    """

    @property
    def total_ms(self) -> float:
        """Return the milliseconds of the dense network."""
        ...

    def has(self, site: str, form: Form | None) -> bool:
        """Return whether this was measured."""
        ...

    def ms(self, site: str, form: Form | None) -> float:
        """Return the milliseconds of a site."""
        ...

    def time(
        self, seen: Capture, plans: Sequence[Plan], *, all_cores: bool = False, progress: bool
    ) -> tuple[NetworkTime, ...] | None:
        """Time the whole network of every plan; None where that is not possible here.

        Args:
            seen: the dense network, captured.
            plans: what to make of it.
            all_cores: with all cores of the machine, in place of the table's threads.
            progress: whether a bar appears.
        """
        ...


def check_precision(precision: str) -> None:
    """Refuse what networks are not measured in.

    Raises:
        LatencyError: it is neither fp32 nor int8.
    """
    if precision not in PRECISIONS:
        raise LatencyError(f"precision={precision!r}: pass one of {', '.join(PRECISIONS)}")


def precision_of(table: Latencies) -> Precision:
    """Return the precision that a table was measured in; a table that does not say is of fp32."""
    found: Precision = getattr(table, "precision", "fp32")
    return found


def beside(precision: Precision) -> str:
    """Return what a speed-up compares with, in words, where that is not the original itself."""
    return "" if precision == "fp32" else f" in {precision} as the original in {precision}"


def pays(table: Latencies, site: str, form: Form) -> bool:
    """Return whether a form is clearly faster than the site as it is."""
    return table.has(site, form) and table.ms(site, None) >= GAIN * table.ms(site, form)
