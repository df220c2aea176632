"""The range that the values of an array are rounded in, by a histogram: five of a million are cut off on each side."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from convsurgeon.base.arrays import Array

Range = tuple[float, float]

_BINS = 2048
_CUT = 5e-6


def widen_range(value: npt.NDArray[Any], before: Range | None) -> Range:
    """Return the smallest and the largest value so far."""
    low, high = (float(value.min()), float(value.max())) if value.size else (0.0, 0.0)
    return (low, high) if before is None else (min(low, before[0]), max(high, before[1]))


def count_bins(value: npt.NDArray[Any], span: Range, before: Array | None) -> Array:
    """Return how many values lie in each bin of a range so far."""
    scale = _BINS / (span[1] - span[0])
    places = ((value.ravel() - np.float32(span[0])) * np.float32(scale)).astype(np.int32)
    counts = np.bincount(np.clip(places, 0, _BINS - 1), minlength=_BINS).astype(np.float64)
    return counts if before is None else before + counts


def cut_range(counts: Array, low: float, high: float) -> Range:
    """Return the edges of the bins beyond which less than `_CUT` of the values lies."""
    below = np.cumsum(counts) / counts.sum()
    first, last = np.searchsorted(below, _CUT), np.searchsorted(below, 1 - _CUT)
    step = (high - low) / _BINS
    return low + first * step, min(high, low + (last + 1) * step)
