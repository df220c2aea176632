"""The range that every value of a float graph is rounded in: found on inputs, or made up where only time matters.

`minmax` takes the smallest and the largest value, `percentile` leaves five of a million out on each side (see
`histogram`). The range in which the values lose least of their energy (Banner et al., NeurIPS 2019) was no better than
the percentile: ResNet-20 0.00084 against 0.00070 dense, with CP 0.0052 against 0.0049; DnCNN the same to 0.004 dB. Only
VDSR, which has no batch norms and long tails, gained: 37.07 dB for 37.01.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from onnx import ModelProto, TensorProto

from convsurgeon.int8.activations import exposed
from convsurgeon.int8.histogram import Range, counts, extremes, percentile
from convsurgeon.onnx import graph
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import Feed

Ranges = Mapping[str, Range]
"""Name of a value -> its smallest and its largest."""

Calibrator = Literal["percentile", "minmax"]
CALIBRATORS: tuple[Calibrator, ...] = get_args(Calibrator)


def found(model: ModelProto, feeds: Sequence[Feed], calibrator: Calibrator) -> Ranges:
    """The range of every float value that a node makes, and of every input.

    Args:
        model: a float graph.
        feeds: calibration inputs.
        calibrator: how.
    """
    names = _float_values(model)
    spans = _over(model, feeds, names, extremes, {})
    ranges = {name: (float(low), float(high)) for name, (low, high) in spans.items()}
    if calibrator == "minmax":
        return ranges
    wide = {name: span for name, span in ranges.items() if span[1] > span[0]}
    bins = _over(model, feeds, list(wide), counts, wide)
    return ranges | {name: percentile(bins[name], *span) for name, span in wide.items()}


def nominal(model: ModelProto) -> Ranges:
    """Ranges that make the graph that images would make, where its values do not matter: for timing it."""
    positive = {node.output[0] for node in model.graph.node if node.op_type in ("Relu", "Clip", "Sigmoid")}
    return {name: (0.0 if name in positive else -1.0, 1.0) for name in _float_values(model)}


def _float_values(model: ModelProto) -> list[str]:
    kinds = proto.element_types(graph.infer_shapes(model).graph)
    made = [*(info.name for info in model.graph.input), *proto.producers(model.graph)]
    constant = set(proto.constants(model.graph))
    return [name for name in made if kinds.get(name) == TensorProto.FLOAT and name not in constant]


def _over(model: ModelProto, feeds: Sequence[Feed], names: Sequence[str], what: Any, spans: Ranges) -> dict[str, Any]:
    """A figure of every value over all feeds."""
    inputs = {info.name for info in model.graph.input}
    inner = [name for name in names if name not in inputs]
    session = exposed(model, inner)
    totals: dict[str, Any] = {}
    for feed in feeds:
        for name in names:
            if name in feed:
                totals[name] = what(feed[name], spans.get(name), totals.get(name))
        for name, value in zip(inner, session.run(inner, feed) if inner else [], strict=True):
            totals[name] = what(value, spans.get(name), totals.get(name))
    return totals
