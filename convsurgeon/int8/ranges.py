"""The range in which every value of a float graph is rounded: found on inputs, or nominal where only time matters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy.typing as npt
from onnx import ModelProto, TensorProto

from convsurgeon.base.arrays import Array
from convsurgeon.int8.feeds import expose_values
from convsurgeon.int8.histogram import Range, count_bins, cut_range, widen_range
from convsurgeon.onnx import graph
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import Feed

Ranges = Mapping[str, Range]
"""Name of a value -> its smallest and its largest."""

Calibrator = Literal["percentile", "minmax"]
CALIBRATORS: tuple[Calibrator, ...] = get_args(Calibrator)


def find_ranges(model: ModelProto, feeds: Sequence[Feed], calibrator: Calibrator) -> Ranges:
    """Return the range of every float value that a node makes, and of every input.

    The calibrator `minmax` takes the extremes, `percentile` cuts five of a million values off on each side.
    """
    ranges: dict[str, Range] = {}
    for name, value in _values(model, feeds, _float_values(model)):
        ranges[name] = widen_range(value, ranges.get(name))
    if calibrator == "minmax":
        return ranges
    counts: dict[str, Array] = {}
    for name, value in _values(model, feeds, [name for name, (low, high) in ranges.items() if high > low]):
        counts[name] = count_bins(value, ranges[name], counts.get(name))
    return ranges | {name: cut_range(found, *ranges[name]) for name, found in counts.items()}


def nominal_ranges(model: ModelProto) -> Ranges:
    """Return ranges that lead to the graph that images would lead to, for timing it."""
    positive = {node.output[0] for node in model.graph.node if node.op_type in ("Relu", "Clip", "Sigmoid")}
    return {name: (0.0 if name in positive else -1.0, 1.0) for name in _float_values(model)}


def _float_values(model: ModelProto) -> list[str]:
    kinds = proto.element_types(graph.inferred(model))
    made = [*(info.name for info in model.graph.input), *proto.producers(model.graph)]
    constant = set(proto.constants(model.graph))
    return [name for name in made if kinds.get(name) == TensorProto.FLOAT and name not in constant]


def _values(model: ModelProto, feeds: Sequence[Feed], names: Sequence[str]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    inputs = {info.name for info in model.graph.input}
    inner = [name for name in names if name not in inputs]
    session = expose_values(model, inner)
    for feed in feeds:
        yield from ((name, feed[name]) for name in names if name in feed)
        if inner:
            yield from zip(inner, session.run(inner, feed), strict=True)
