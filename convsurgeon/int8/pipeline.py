"""The steps from a float graph to an int8 one, in memory; `quantize` takes them for a file, `as_int8` for a module."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from onnx import ModelProto

from convsurgeon.int8.equalise import equalise
from convsurgeon.int8.merge_sums import merge_sums
from convsurgeon.int8.qdq import insert_qdq
from convsurgeon.int8.ranges import Calibrator, Ranges, find_ranges
from convsurgeon.int8.target import Target
from convsurgeon.int8.weight_rounding import round_weights
from convsurgeon.onnxnet.session import Feed


def prepare(model: ModelProto, feeds: Sequence[Feed], calibrator: Calibrator = "percentile") -> Ranges:
    """Bring a float graph, in place, into the form that rounds best, and find the ranges of its values."""
    merge_sums(model.graph)
    equalise(model, feeds)
    return find_ranges(model, feeds, calibrator)


def round_graph(
    model: ModelProto, ranges: Ranges, feeds: Sequence[Feed], target: Target, left: Collection[str] = ()
) -> ModelProto:
    """Return the int8 version of a float graph that `prepare` made, which stays as it is; `left` are nodes in float."""
    rough = insert_qdq(model, ranges, target, left)
    exact = ModelProto.FromString(model.SerializeToString())
    scales = round_weights(exact, rough, feeds, target, left)
    return insert_qdq(exact, ranges, target, left, scales)
