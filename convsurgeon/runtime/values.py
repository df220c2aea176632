"""What a table of latencies holds, told from what it cannot: times, counts, precisions."""

from __future__ import annotations

import math
from typing import Any

from convsurgeon.base.errors import LatencyError
from convsurgeon.base.precision import PRECISIONS, Precision


def check_precision(precision: str) -> None:
    """Refuses what no network is measured in.

    Raises:
        LatencyError: it is none of the two.
    """
    if precision not in PRECISIONS:
        raise LatencyError(f"precision={precision!r}: pass one of {', '.join(PRECISIONS)}")


def number(value: Any, above: float = -1.0) -> float:
    """A time in milliseconds; a ValueError where it is none."""
    if type(value) not in (int, float) or not above < value < math.inf or value < 0:
        raise ValueError(f"{value!r} is no time")
    return float(value)


def count(value: Any) -> int:
    """Of threads or passes; a ValueError where it is none."""
    if type(value) is not int or not 0 < value < 1 << 31:
        raise ValueError(f"{value!r} is no number of threads or passes")
    return value


def precision_in(value: Any) -> Precision:
    """Of a stored table; a ValueError where it is none."""
    if value not in PRECISIONS:
        raise ValueError(f"{value!r} is no precision")
    found: Precision = value
    return found
