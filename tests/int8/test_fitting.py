"""Weights rounded to what their layer computes: on their grids, and by its error never worse than the nearest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st
from onnx import ModelProto

from convsurgeon.int8.equalise import equalise
from convsurgeon.int8.qdq import insert_qdq
from convsurgeon.int8.ranges import find_ranges
from convsurgeon.int8.target import Target
from convsurgeon.int8.weight_rounding import round_rows, round_weights
from convsurgeon.onnxnet import proto
from tests.int8.graphs import CHAIN, feeds, outputs, relative

Array = npt.NDArray[np.float64]


def _cost(wrong: Array, moment: Array) -> Array:
    found: Array = np.einsum("oi,ij,oj->o", wrong, moment, wrong)
    return found


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    outputs=st.integers(1, 6),
    inputs=st.integers(1, 12),
    rank=st.integers(0, 12),
    largest=st.sampled_from([3, 64, 127]),
)
def test_the_error_is_never_above_that_of_the_nearest(
    seed: int, outputs: int, inputs: int, rank: int, largest: int
) -> None:
    """Law 10, for moments of every rank, dead inputs among them."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((outputs, inputs)) * 10.0 ** random.uniform(-6, 6)
    seen = random.standard_normal((rank, inputs)) * 10.0 ** random.uniform(-4, 4, inputs)
    moment = seen.T @ seen
    steps = np.maximum(np.abs(rows).max(axis=1) / largest, 1e-30)
    made = round_rows(rows, moment, steps, largest)
    levels = made / steps[:, None]
    assert np.abs(levels - np.round(levels)).max() < 1e-6
    assert np.abs(levels).max() <= largest + 1e-6
    nearest = np.clip(np.round(rows / steps[:, None]), -largest, largest) * steps[:, None]
    assert (_cost(rows - made, moment) <= _cost(rows - nearest, moment) * (1 + 1e-9) + 1e-30).all()


def test_correlated_inputs_make_good_what_rounding_did() -> None:
    """Two inputs that are the same: what one weight loses the other can give."""
    random = np.random.default_rng(0)
    shared = random.standard_normal((500, 1))
    seen = shared + 0.05 * random.standard_normal((500, 16))
    moment, rows = seen.T @ seen / 500, random.standard_normal((32, 16))
    steps = np.abs(rows).max(axis=1) / 7
    made = round_rows(rows, moment, steps, 7)
    nearest = np.clip(np.round(rows / steps[:, None]), -7, 7) * steps[:, None]
    assert _cost(rows - made, moment).sum() < 0.2 * _cost(rows - nearest, moment).sum()


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_chain_is_nearer_to_what_it_was(per_channel: bool) -> None:
    """Both halves of it: weights on their grids survive the quantiser as they are, and the bias takes the mean."""
    target = Target(per_channel=per_channel)
    model = CHAIN()
    data = feeds()
    equalise(model, data)
    ranges = find_ranges(model, data, "minmax")
    rough = insert_qdq(model, ranges, target)
    exact = ModelProto.FromString(model.SerializeToString())
    scales = round_weights(exact, rough, data, target, left=())
    fitted = insert_qdq(exact, ranges, target, scales=scales)
    kernels = {one.name: proto.array(one) for one in exact.graph.initializer if one.name in scales}
    stored = {one.name: proto.array(one) for one in fitted.graph.initializer}
    for name, kernel in kernels.items():
        steps = scales[name].reshape(-1, *[1] * (kernel.ndim - 1))
        assert np.array_equal(stored[f"{name}_quantized"], np.round(kernel / steps))
    wanted = outputs(model, data)
    errors = [relative(wanted, outputs(one, data)) for one in (rough, fitted)]
    assert errors[1] < errors[0]


def test_what_stays_in_float_keeps_its_weights() -> None:
    model = CHAIN()
    data, target = feeds(), Target()
    rough = insert_qdq(model, find_ranges(model, data, "minmax"), target, left=["expand"])
    before = {one.name: one.raw_data for one in model.graph.initializer}
    scales = round_weights(model, rough, data, target, left=["expand"])
    after = {one.name: one.raw_data for one in model.graph.initializer}
    assert "expand.weight" not in scales
    assert after["expand.weight"] == before["expand.weight"]
    assert after["reduce.weight"] != before["reduce.weight"]
