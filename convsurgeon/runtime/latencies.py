"""What a budget wants to know of milliseconds, without loading the runtime that measures them.

A `LatencyTable` is a `Latencies` and a `Timer`; so is any object that answers the same questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from convsurgeon.base.precision import Precision
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.planning.plan import Plan

GAIN = 1.1
"""A layer changes for speed only where the table says that it gets this much faster."""


class Latencies(Protocol):
    """Measured milliseconds: of a site as it is (`form` None) or in a form, and of the whole network."""

    @property
    def total_ms(self) -> float:
        """The network as it is."""
        ...

    def has(self, site: str, form: Form | None) -> bool:
        """Whether this was measured."""
        ...

    def ms(self, site: str, form: Form | None) -> float:
        """Milliseconds of a site."""
        ...


def precision_of(table: Latencies) -> Precision:
    """Of the networks that a table was measured in; one that does not say is of fp32."""
    found: Precision = getattr(table, "precision", "fp32")
    return found


def beside(precision: Precision) -> str:
    """What a speed-up is held against, in words, where that is not the original itself."""
    return "" if precision == "fp32" else f" in {precision} as the original in {precision}"


def pays(table: Latencies, site: str, form: Form) -> bool:
    """Whether a form is clearly faster than the site as it is."""
    return table.has(site, form) and table.ms(site, None) >= GAIN * table.ms(site, form)


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

    def stopwatch(self, seen: Capture, progress: bool, *, all_cores: bool = False) -> Stopwatch | None:
        """Times the networks of plans of a model, with as many threads as the table or with all cores.

        None where it was not this machine that the table is of, or where the table has all cores already.
        """
        ...
