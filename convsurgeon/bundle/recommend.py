"""Which file of a bundle to ship: the fastest that is near enough to the original, and how to run it.

Law: in the setting that it is recommended with, a file is not slower than the quantised dense one beside it.
The dense int8 file is what people ship without us, so what it loses is always allowed, and it is a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from convsurgeon.report.bundle import DENSE_INT8, ORIGINAL, Recommended
from convsurgeon.timing.comparison import ComparedFile, Comparison

RUINED = 0.25
"""Error of the converted network from which on it is not taken for what its user wants."""


def allowed_error(errors: Mapping[str, float], *, limit: float, accepted: str, searched: bool) -> float:
    """Return the largest error that a recommended file may have.

    It is the limit, on top of what the `accepted` file lost where its user asked for a form or a cost. Where the limit
    is that of a search (`searched`), other files may not lose more than it or the accepted file. It is never less than
    the quantised dense network loses.
    """
    known = errors.get(accepted, 0.0)
    lost = known if known <= RUINED else 0.0
    own = max(limit, lost) if searched else limit + lost
    return max(own, errors.get(DENSE_INT8, 0.0))


def recommend(timings: Sequence[Comparison], errors: Mapping[str, float], allowed: float) -> Recommended:
    """Return the fastest file within an error in any of the settings that were timed; there is one at least."""
    known = {**errors, ORIGINAL: 0.0}
    found = [(_fastest(timing, known, allowed), timing) for timing in timings]
    row, timing = min(found, key=lambda pair: pair[0].p50_ms)
    dense = next((other.speedup for other in timing.rows if other.name == DENSE_INT8), None)
    return Recommended(
        name=row.name,
        speedup=row.speedup,
        interval=row.interval,
        over_dense_int8=None if dense is None else row.speedup / dense,
        error=known[row.name],
        allowed=allowed,
        threads=timing.threads,
        spinning=timing.threads > 1,
        level=timing.level,
    )


def _fastest(timing: Comparison, known: Mapping[str, float], allowed: float) -> ComparedFile:
    """Return the fastest of the files near enough: measurably faster ones, the original, dense int8."""
    near = [row for row in timing.rows if known.get(row.name, math.inf) <= allowed]
    enough = [row for row in near if row.verdict == "faster" or row.name in (ORIGINAL, DENSE_INT8)]
    return max(enough, key=lambda row: (row.speedup, -known[row.name]))
