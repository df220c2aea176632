"""Sums of convs become one conv that computes the same, and nothing else is touched."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from convsurgeon.int8.equalise import equalise
from convsurgeon.int8.merge_sums import merge_sums
from convsurgeon.int8.qdq import insert_qdq
from convsurgeon.int8.ranges import nominal_ranges
from convsurgeon.int8.target import Target
from tests.int8.graphs import BRANCHES, CHANNELS, Writer, feeds, outputs


def _kinds(model: ModelProto) -> list[str]:
    return sorted(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(
    ("count", "bias"),
    [(2, bias) for bias in itertools.product([True, False], repeat=2)] + [(4, (False,) * 3 + (True,))],
)
def test_branches_become_one_conv(count: int, bias: tuple[bool, ...]) -> None:
    model = BRANCHES(count, bias)
    wanted = outputs(model, feeds(1))
    assert merge_sums(model.graph) == count - 1
    onnx.checker.check_model(model, full_check=True)
    assert _kinds(model) == ["Concat", *["Conv"] * (count + 1)]
    assert np.abs(outputs(model, feeds(1)) - wanted).max() < 1e-5 * np.abs(wanted).max()
    before = {one.name: one.raw_data for one in model.graph.initializer}
    assert len(equalise(model, feeds(1))) == 1  # the joined value, all its pieces together
    after = {one.name: one.raw_data for one in model.graph.initializer}
    assert all(before[f"depthwise{number}.weight"] != after[f"depthwise{number}.weight"] for number in range(count))
    assert np.abs(outputs(model, feeds(1)) - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_one_rounding_stands_where_there_were_three() -> None:
    rough = BRANCHES(2, (True, False))
    pairs = _kinds(insert_qdq(rough, nominal_ranges(rough), Target())).count("QuantizeLinear")
    merge_sums(rough.graph)
    assert (
        _kinds(insert_qdq(rough, nominal_ranges(rough), Target())).count("QuantizeLinear") == pairs - 1
    )  # one more to stand side by side


def test_what_somebody_else_reads_is_left_alone() -> None:
    write = Writer()
    shape = (CHANNELS, CHANNELS, 1, 1)
    first, second = write.conv("first", "x", shape), write.conv("second", "x", shape)
    total = write.node("Add", "total", first, second)
    model = write.model(write.node("Mul", "product", total, first))
    assert merge_sums(model.graph) == 0


@pytest.mark.parametrize("kind", ["stride", "groups", "window", "twice", "constant"])
def test_convs_that_differ_are_left_alone(kind: str) -> None:
    write = Writer()
    first = write.conv("first", "x", (CHANNELS, CHANNELS, 1, 1))
    if kind == "twice":
        total = write.node("Add", "total", first, first)
    elif kind == "constant":
        total = write.node("Add", "total", first, "first.bias")
    else:
        shapes = {"groups": (CHANNELS, CHANNELS // 2, 1, 1), "window": (CHANNELS, CHANNELS, 3, 3)}
        strided = {"strides": [8, 8]} if kind == "stride" else {}
        second = write.conv(
            "second", "x", shapes.get(kind, (CHANNELS, CHANNELS, 1, 1)), groups=2 if kind == "groups" else 1, **strided
        )
        total = write.node("Add", "total", first, second)
    model = write.model(total)
    before = model.SerializeToString()
    assert merge_sums(model.graph) == 0
    assert model.SerializeToString() == before
