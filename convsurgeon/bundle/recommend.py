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

    It is the limit, on top of what the conversion lost where its user asked for a form or a cost and not for an error.
    It is never less than the quantised dense network loses.

    Args:
        errors: of the files, by name.
        limit: of the search that made the network, or the usual one.
        accepted: the file whose error came with the conversion that was asked for.
        searched: whether the limit is that of the search; then other files may not lose more than it or the accepted
            file.
    """
    known = errors.get(accepted, 0.0)
    lost = known if known <= RUINED else 0.0
    own = max(limit, lost) if searched else limit + lost
    return max(own, errors.get(DENSE_INT8, 0.0))


def recommend(timings: Sequence[Comparison], errors: Mapping[str, float], allowed: float) -> Recommended | None:
    """Return the fastest file within an error in any of the settings that were timed; None where none were.

    Args:
        timings: one per setting, of the same files in turns.
        errors: of the files, by name.
        allowed: the largest.
    """
    known = {**errors, ORIGINAL: 0.0}
    found = [(_fastest(timing, known, allowed), timing) for timing in timings]
    if not found:
        return None
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
