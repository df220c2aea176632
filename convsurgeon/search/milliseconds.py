"""Milliseconds of this machine for whoever has none: measured where they are asked for, kept in the user's cache."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convsurgeon.base import processes as world
from convsurgeon.base.errors import BudgetError, ExportError, LatencyError
from convsurgeon.base.precision import Precision
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.planning.plan import Plan
from convsurgeon.planning.select import Predicate
from convsurgeon.runtime.latencies import Latencies, beside, precision_of
from convsurgeon.search.budget import Budget
from convsurgeon.search.choice import predicted
from convsurgeon.search.confirm import Timing


def table_for(
    budget: Budget,
    given: Latencies | None,
    seen: Capture,
    forms: Sequence[Form],
    policy: Predicate | None,
    progress: bool,
) -> Latencies | None:
    """The table that was handed in, or if the budget is one of milliseconds, one of this machine.

    Raises:
        BudgetError: the table is of another precision than the budget.
    """
    if given is None and budget.latency is not None:
        return measured_here(seen, forms, policy, progress, budget.precision)
    check_table(given, budget.precision)
    return given


def check_table(table: Latencies | None, precision: Precision) -> None:
    """Refuses a table of one precision for plans of another.

    Raises:
        BudgetError: it is one.
    """
    if table is not None and (found := precision_of(table)) != precision:
        raise BudgetError(
            f"budget: the plan is for {precision}, the table of latencies of {found}; "
            f"measure one with precision={precision!r}, or plan for {found}"
        )


def measured_here(
    seen: Capture, forms: Sequence[Form], policy: Predicate | None, progress: bool, precision: Precision = "fp32"
) -> Latencies:
    """A `LatencyTable` of one thread; of several processes the first measures for all.

    Raises:
        ExportError: the model has no ONNX form.
        LatencyError: a form, or the network, cannot be timed.
        WriteError: there is no place for the cache.
    """
    from convsurgeon.runtime.table import LatencyTable

    return world.shared(lambda: LatencyTable.measure(seen, forms, policy, precision=precision, progress=progress))


def speed_in_words(
    seen: Capture,
    plan: Plan,
    table: Latencies | None,
    timings: Sequence[Timing],
    precision: Precision,
    progress: bool,
) -> str:
    """What a plan does to the milliseconds, in one sentence: as they were timed, or else by the table, or timed now."""
    taken = [one for one in timings if one.taken]
    if taken:
        return _compared(taken[0].dense_ms, taken[0].measured_ms, "measured in onnxruntime", precision)
    if table is not None and math.isfinite(after_ms := predicted(table, plan)):
        return _compared(table.total_ms, after_ms, "by the table of latencies", precision)
    if not plan.changes:
        return ""
    try:
        times = world.shared(lambda: _timed(seen, plan, precision, progress))
        return _compared(*times, "measured in onnxruntime, one thread", precision)
    except (ExportError, LatencyError) as error:
        return f"Milliseconds are not known: {error}."


def _timed(seen: Capture, plan: Plan, precision: Precision, progress: bool) -> tuple[float, float]:
    from convsurgeon.runtime.measure import time_plans

    dense_ms, (whole,) = time_plans(seen, [plan], precision=precision, progress=progress)
    return dense_ms, whole.total_ms


def _compared(before_ms: float, after_ms: float, how: str, precision: Precision) -> str:
    word = "" if after_ms <= before_ms else ", that is slower"
    faster = f"{before_ms / after_ms:.2f} times as fast{beside(precision)}{word}"
    return f"{faster}: {after_ms:.3g} ms instead of {before_ms:.3g}, {how}."
