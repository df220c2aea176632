"""Which file of a bundle to ship: the fastest that is near enough to the original, and how to run it.

Law: in the setting that it is recommended with, a file is not slower than the quantised dense one beside it, if that is
near enough. One limit holds for every file, whatever made it what it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from convsurgeon.report.bundle import DENSE_INT8, ORIGINAL, Recommended
from convsurgeon.timing.comparison import ComparedFile, Comparison


def recommend(
    timings: Sequence[Comparison], lost: Mapping[str, float], allowed: float, chosen: str = ""
) -> Recommended:
    """Return the fastest file within a loss in any of the settings that were timed; there is one at least.

    The file `chosen`, which a search found good enough on other images, may be recommended too.
    """
    known = {**lost, ORIGINAL: 0.0}
    near = {name for name, loss in known.items() if loss <= allowed or (name == chosen and math.isfinite(loss))}
    found = [(_fastest(timing, known, near), timing) for timing in timings]
    row, timing = min(found, key=lambda pair: pair[0].p50_ms)
    dense = next((other.speedup for other in timing.rows if other.name == DENSE_INT8), None)
    return Recommended(
        name=row.name,
        speedup=row.speedup,
        interval=row.interval,
        over_dense_int8=None if dense is None else row.speedup / dense,
        lost=known[row.name],
        allowed=allowed,
        threads=timing.threads,
        spinning=timing.threads > 1,
        level=timing.level,
        provider=timing.provider,
        options=timing.options,
    )


def _fastest(timing: Comparison, known: Mapping[str, float], near: set[str]) -> ComparedFile:
    """Return the fastest of the files near enough: measurably faster ones, or the original."""
    enough = [row for row in timing.rows if row.name in near and (row.verdict == "faster" or row.name == ORIGINAL)]
    return max(enough, key=lambda row: (row.speedup, -known[row.name]))
