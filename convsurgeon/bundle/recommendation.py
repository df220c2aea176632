"""Which file of a bundle to ship: the fastest that is near enough to the original, and how to run it.

Law: no file that is recommended is slower than the quantised dense one beside it, in the setting that it is recommended
with. The dense int8 file is what people ship without us, so what it loses is always allowed, and it is a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convsurgeon.onnxnet.session import Level
from convsurgeon.timing.comparison import ComparedFile, Comparison

ORIGINAL, CONVERTED, DENSE_INT8, INT8 = "original.onnx", "model.onnx", "original-int8.onnx", "model-int8.onnx"

RUINED = 0.25
"""Relative error of the converted network from which on it is not taken for what its user wants."""


@dataclass(frozen=True)
class Recommended:
    """A file, why it is recommended, and the session options to run it with."""

    name: str
    speedup: float
    """Times as fast as `original.onnx`, in turns, in this setting."""
    interval: tuple[float, float]
    over_dense_int8: float | None
    """Times as fast as the quantised original; None where there is none."""
    error: float
    """Of its outputs, relative to the variance of the original's."""
    allowed: float
    threads: int
    """`intra_op_num_threads`; `inter_op_num_threads` is 1."""
    spinning: bool
    """`session.intra_op.allow_spinning`."""
    level: Level
    """`graph_optimization_level`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "interval": list(self.interval)}


def allowed_error(errors: Mapping[str, float], limit: float, accepted: str, searched: bool) -> float:
    """What a recommended file may lose.

    Args:
        errors: of the files, by name; `original.onnx` has none.
        limit: the error that is allowed, of the search that made the network, or the usual one.
        accepted: the file whose error came with the conversion that was asked for.
        searched: whether the limit is that of the search: then no other file may lose more than it or the accepted one.

    Returns:
        The limit, on top of what the conversion lost where its user asked for a form or a cost and not for an error;
        never less than the quantised dense network loses.
    """
    known = errors.get(accepted, 0.0)
    taken = known if known <= RUINED else 0.0
    own = max(limit, taken) if searched else limit + taken
    return max(own, errors.get(DENSE_INT8, 0.0))


def recommend(timings: Sequence[Comparison], errors: Mapping[str, float], allowed: float) -> Recommended | None:
    """The fastest file within an error in any of the settings that were timed; None where none were.

    Args:
        timings: one per setting, of the same files in turns.
        errors: of the files, by name.
        allowed: most of it.
    """
    known = {**errors, ORIGINAL: 0.0}
    found = [(_fastest(timing, known, allowed), timing) for timing in timings]
    if not found:
        return None
    row, timing = min(found, key=lambda pair: pair[0].p50_ms)
    dense = next((other.speedup for other in timing.rows if other.name == DENSE_INT8), None)
    over = None if dense is None else row.speedup / dense
    how = (timing.threads, timing.threads > 1, timing.level)
    return Recommended(row.name, row.speedup, row.interval, over, known[row.name], allowed, *how)


def _fastest(timing: Comparison, known: Mapping[str, float], allowed: float) -> ComparedFile:
    """The row with the largest speed-up of those near enough: measurably faster files, the original, dense int8."""
    near = [row for row in timing.rows if known.get(row.name, math.inf) <= allowed]
    enough = [row for row in near if row.verdict == "faster" or row.name in (ORIGINAL, DENSE_INT8)]
    return max(enough, key=lambda row: (row.speedup, -known[row.name]))
