"""The convs of a file: real convs of torch where their weights are constant, or the reason why not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import GraphProto, NodeProto
from torch import nn

from convsurgeon.forms.geometry import Geometry
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.leaf import HiddenConv
from convsurgeon.onnxnet.macs import macs_of
from convsurgeon.onnxnet.operators.op import View
from convsurgeon.onnxnet.operators.windows import PaddingBefore, filled
from convsurgeon.onnxnet.padding import Padding
from convsurgeon.onnxnet.values import Values

KINDS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class ConvParts:
    """A conv, and the padding before it where torch's conv cannot add that itself."""

    conv: nn.Module
    before: PaddingBefore | None


def conv_parts(view: View) -> ConvParts | str:
    """A conv node in torch, or why it is none there."""
    weight, bias = view.tensor(1), view.tensor(2)
    if weight is None:
        return "its weight is computed by the network; only constant ones are factored"
    if view.has(2) and bias is None:
        return "its bias is computed by the network; only constant ones are kept"
    dims = weight.dim() - 2
    if dims not in (1, 2, 3):
        return f"it has {dims} dimensions; only Conv2d is rewritten"
    kernel = tuple(weight.shape[2:])
    padding = Padding.of(proto.attributes(view.node), kernel)
    made = KINDS[dims - 1](
        weight.shape[1] * view.get("group", 1),
        weight.shape[0],
        kernel,
        padding.strides,
        padding.symmetric or 0,
        tuple(view.get("dilations", [1] * dims)),
        view.get("group", 1),
        bias is not None,
        device="meta",
    )
    return ConvParts(filled(made, weight, bias), None if padding.symmetric is not None else PaddingBefore(padding))


def sharing(graph: GraphProto) -> Counter[str]:
    """How many different convs read each weight; two nodes that compute the same are one conv with two calls."""
    kinds = {conv_key(node) for node in graph.node if node.op_type == "Conv"}
    return Counter(key[0] for key in kinds)


def conv_key(node: NodeProto) -> tuple[str, ...]:
    """What makes two conv nodes the same conv: weight, bias, attributes."""
    weight, bias = [*node.input[1:3], ""][:2]
    return weight, bias, *sorted(str(item.SerializeToString(deterministic=True)) for item in node.attribute)


def hidden_convs(nodes: Sequence[NodeProto], values: Values, reasons: dict[str, str]) -> tuple[HiddenConv, ...]:
    """Convs among the nodes of a piece, in graphs inside of them and in functions that they call too.

    Args:
        nodes: of the piece.
        values: of the whole graph.
        reasons: why a conv is no module, by its first output.
    """
    found = [_outer(node, values, reasons[node.output[0]]) for node in nodes if node.op_type == "Conv"]
    for node in nodes:
        found += [_inner(conv, graph, values, node) for conv, graph in _inside(node)]
        found += _called(node, values)
    return tuple(found)


def _outer(node: NodeProto, values: Values, reason: str) -> HiddenConv:
    shapes = values.shapes([*node.input[:2], node.output[0]])
    weight = shapes.get(node.input[1], (1, 1, 1, 1))
    calls = ((shapes[node.input[0]], shapes[node.output[0]]),) if len(shapes) == 3 else ()
    constant = node.input[1] in values.constant
    return HiddenConv(
        node.name or node.output[0],
        f"Conv{len(weight) - 2}d",
        _geometry(node, weight),
        calls,
        math.prod(weight) if constant else 0,
        macs_of(node, shapes) or 0,
        reason,
    )


def _inside(node: NodeProto) -> Iterator[tuple[NodeProto, GraphProto]]:
    """Convs in the graphs that a node holds."""
    for item in node.attribute:
        for graph in (*item.graphs, *([item.g] if item.HasField("g") else [])):
            for inner in proto.graphs(graph):
                yield from ((conv, inner) for conv in inner.node if conv.op_type == "Conv")


def _inner(conv: NodeProto, graph: GraphProto, values: Values, holder: NodeProto) -> HiddenConv:
    stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    weight = stored.get(conv.input[1]) or values.shape(conv.input[1]) or (1, 1, *_kernel(conv))
    why = f"it runs inside of the {holder.op_type} {holder.name or holder.output[0]}, now and then or again and again"
    name = conv.name or conv.output[0]
    count = math.prod(weight) if conv.input[1] in stored else 0
    return HiddenConv(name, f"Conv{len(weight) - 2}d", _geometry(conv, weight), (), count, 0, why)


def _called(node: NodeProto, values: Values) -> list[HiddenConv]:
    """Convs in the function that a node calls."""
    own = [one for one in values.source.model.functions if (one.domain, one.name) == (node.domain, node.op_type)]
    convs = [conv for function in own for conv in function.node if conv.op_type == "Conv"]
    why = f"it runs inside of the function {node.op_type}; inline it (onnx.inliner) to have it rewritten"
    where = node.name or node.output[0]
    return [
        HiddenConv(
            f"{where}.{conv.name or conv.output[0]}", "Conv", _geometry(conv, (1, 1, *_kernel(conv))), (), 0, 0, why
        )
        for conv in convs
    ]


def _kernel(conv: NodeProto) -> tuple[int, ...]:
    return next((tuple(item.ints) for item in conv.attribute if item.name == "kernel_shape"), (1, 1))


def _geometry(node: NodeProto, weight: Sequence[int]) -> Geometry:
    """Of a conv that is left alone: for the table alone."""
    dims = len(weight) - 2
    values = {item.name: tuple(item.ints) for item in node.attribute}
    groups = int(proto.attribute(node, "group", 1))
    pads = values.get("pads", (0,) * (2 * dims))[:dims]
    outputs = max(weight[0], groups)
    return Geometry(
        weight[1] * groups,
        outputs,
        tuple(weight[2:]),
        values.get("strides") or (1,) * dims,
        tuple(max(0, pad) for pad in pads),
        values.get("dilations") or (1,) * dims,
        groups,
        "zeros",
        len(node.input) > 2,
    )
