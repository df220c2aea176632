"""The range that values are rounded in, from arrays of them: five of a million are left out on each side.

By a histogram of `BINS` bins between the extremes, which are found first; nothing is sorted or kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Range = tuple[float, float]

BINS = 2048
_CUT = 5e-6


def extremes(value: npt.NDArray[Any], _span: Range | None, before: Range | None) -> Range:
    """The smallest and the largest value so far."""
    low, high = (float(value.min()), float(value.max())) if value.size else (0.0, 0.0)
    return (low, high) if before is None else (min(low, before[0]), max(high, before[1]))


def counts(value: npt.NDArray[Any], span: Range | None, before: Array | None) -> Array:
    """How many values lie in each bin so far."""
    assert span is not None
    scale = BINS / (span[1] - span[0])
    places = ((value.ravel() - np.float32(span[0])) * np.float32(scale)).astype(np.int32)
    found = np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS).astype(np.float64)
    return found if before is None else before + found


def percentile(found: Array, low: float, high: float) -> Range:
    """The edges of the bins beyond which less than `_CUT` of the values lies."""
    below = np.cumsum(found) / found.sum()
    first, last = np.searchsorted(below, _CUT), np.searchsorted(below, 1 - _CUT)
    step = (high - low) / BINS
    return low + first * step, min(high, low + (last + 1) * step)
