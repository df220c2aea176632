"""Ranges are those of the values that the graph really makes."""

from __future__ import annotations

import numpy as np

from convsurgeon.int8.ranges import find_ranges, nominal_ranges
from tests.int8.graphs import CHAIN, feeds, outputs


def test_minmax_is_the_smallest_and_the_largest() -> None:
    model, data = CHAIN(), feeds()
    ranges = find_ranges(model, data, "minmax")
    assert set(ranges) == {"x", "stem", "relu", "reduce", "depthwise", "expand"}
    values = outputs(model, data)
    assert np.allclose(ranges["expand"], (values.min(), values.max()))
    assert np.allclose(ranges["x"], (min(one["x"].min() for one in data), max(one["x"].max() for one in data)))
    assert ranges["relu"][0] == 0


def test_percentile_leaves_the_outliers_out() -> None:
    model, spoiled = CHAIN(), {"x": feeds(1)[0]["x"].copy()}
    spoiled["x"][0, 0, 0, 0] = 1e4
    data = [*feeds() * 25, spoiled]  # one value in 230 000
    wide, narrow = find_ranges(model, data, "minmax"), find_ranges(model, data, "percentile")
    assert wide["x"][1] == 1e4
    assert narrow["x"][1] < 1e4
    assert all(wide[name][0] <= low <= high <= wide[name][1] for name, (low, high) in narrow.items())


def test_ranges_for_timing_make_the_same_graph() -> None:
    ranges = nominal_ranges(CHAIN())
    assert set(ranges) == {"x", "stem", "relu", "reduce", "depthwise", "expand"}
    assert ranges["relu"][0] == 0 > ranges["stem"][0]
