"""From samples to a word: faster, slower, or no measurable difference.

Samples are times per run, shape (blocks, rounds); a block is one set of freshly made sessions, a round is one sample of
every model. Round r with times a, a' of two sessions of the baseline and b of the candidate gives two speed-ups, a / b
and a' / b, and one null a / a'. Only ratios within a round are used, so a slow drift of the machine cancels.

Each block gives the median of its speed-ups. The estimate is their mean, and Student's t says how far it may be off: as
far as blocks differ, because sessions differ by where their weights lie in memory, and neighbours on a shared machine
come and go within seconds, not rounds. The noise floor is what the baseline shows against itself, the median null, and
one percent at least. There is a difference only where all that the estimate may be lies beyond the floor.

Other neighbours stay for minutes and slow both files by as many milliseconds: the speed-up shrinks, though never below
one. So the interval is wider by what speed-ups differ by from minute to minute; no word rests on that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from convsurgeon.base.errors import LatencyError, expect

TimeSamples = npt.NDArray[np.float64]
Word = Literal["faster", "slower", "no measurable difference"]

MIN_PAIRS = 50
"""Rounds that a verdict is asked with at least; of files so slow that as many would take minutes fewer are made, and
the interval is wider then."""
_MOST_PAIRS = 100_000
BLOCKS = 5
"""Sets of sessions; `_STUDENT` is the factor of 95 % for as many."""
_STUDENT = 2.776
_MINUTES = 0.1
"""Standard deviation of a speed-up's logarithm from one minute to another, as a share of the logarithm."""
_SURE = 1.96
"""Standard deviations of a 95 % interval."""
_LEAST_FLOOR = 0.01
"""Where weights lie in memory moves a session by half of this, seen or not."""


@dataclass(frozen=True)
class Verdict:
    """What the samples say about a candidate against the baseline."""

    speedup: float
    interval: tuple[float, float]
    """Where the speed-up lies with 95 % confidence."""
    noise: float
    """Ratio, 1.01 or more, of the baseline against itself; smaller differences mean nothing."""
    word: Word


def check_pairs(pairs: int, instead: str = "") -> None:
    """Raise `LatencyError` for too few rounds for a verdict, or for days of them; `instead` is what else would do."""
    expect(pairs, int, "pairs: expected a whole number", LatencyError)
    if pairs < MIN_PAIRS:
        raise LatencyError(f"pairs={pairs}: too few for an interval; pass {MIN_PAIRS} or more{instead}")
    if pairs > _MOST_PAIRS:
        raise LatencyError(f"pairs={pairs}: would take days; pass {_MOST_PAIRS:,} or fewer, 100 do")


def judge(first: TimeSamples, second: TimeSamples, candidate: TimeSamples) -> Verdict:
    """Compare a candidate with two sessions of the baseline; all are times of the same rounds.

    Raises:
        LatencyError: Shapes differ, there is not a round in each of `BLOCKS`, or a time is not positive.
    """
    times = (first, second, candidate)
    alike = first.shape == second.shape == candidate.shape
    if not alike or first.ndim != 2 or len(first) != BLOCKS or not first.size:
        raise LatencyError(f"samples of shape {first.shape}: a verdict needs {BLOCKS} blocks of rounds of each model")
    if not all(np.isfinite(sample).all() and (sample > 0).all() for sample in times):
        raise LatencyError("samples: hold a time that is not positive; is the clock steady?")
    logs = np.log(np.stack([first, second], axis=-1)) - np.log(candidate)[..., None]
    medians = np.median(logs, axis=(1, 2))
    middle, half = float(medians.mean()), _STUDENT * float(medians.std(ddof=1)) / math.sqrt(BLOCKS)
    floor = max(_LEAST_FLOOR, abs(float(np.median(np.log(first) - np.log(second)))))
    faster, slower = middle - half > floor, middle + half < -floor
    word: Word = "faster" if faster else "slower" if slower else "no measurable difference"
    wide = half_width(middle, half)
    return Verdict(math.exp(middle), (math.exp(middle - wide), math.exp(middle + wide)), math.exp(floor), word)


def half_width(speedup: float, off: float) -> float:
    """Return half the width of the 95 % interval of a speed-up in any minute, where one measurement is `off` so much.

    All are logarithms.
    """
    return math.hypot(off, _SURE * _MINUTES * speedup)
