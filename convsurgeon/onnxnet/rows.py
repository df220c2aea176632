"""One-dimensional convs of a file as 2-d convs of one row, so that they are sites like any other."""

from __future__ import annotations

from typing import Any

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

from convsurgeon.onnxnet import proto

_AXES_ARE_INPUTS = 13
"""Operator set from which `Unsqueeze` and `Squeeze` read their axes."""


def put_in_rows(graph: GraphProto, opset: int) -> None:
    """Give every conv of a stored weight (O, I, k) a window of one row, and its input and output a row.

    onnxruntime has its fast layouts for 2-d convs only, so this is faster by itself. A weight that something else reads
    too, or that a caller may pass, stays as it is.
    """
    convs = [node for node in graph.node if node.op_type == "Conv" and node.domain in ("", "ai.onnx")]
    weights = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 3}
    uses, passed = proto.uses(graph), {info.name for info in graph.input}
    own = {name: [node for node in convs if node.input[1] == name] for name in weights}
    rows = {name for name, readers in own.items() if readers and len(readers) == uses[name] and name not in passed}
    if not rows:
        return
    for name in rows:
        weights[name].dims.insert(2, 1)
    taken = {name for node in graph.node for name in (*node.input, *node.output, node.name)}
    axes = proto.unique("axis_of_the_row", taken)
    nodes = [
        part
        for node in graph.node
        for part in (_in_row(node, axes, opset, taken) if node.op_type == "Conv" and node.input[1] in rows else [node])
    ]
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    if opset >= _AXES_ARE_INPUTS:
        graph.initializer.add(name=axes, data_type=TensorProto.INT64, dims=[1], int64_data=[2])


def _in_row(node: NodeProto, axes: str, opset: int, taken: set[str]) -> list[NodeProto]:
    """Return a node that adds the row, the conv over it, and a node that takes it away."""
    source, target = node.input[0], node.output[0]
    wide, found = (proto.unique(f"{name}.as_a_row", taken) for name in (source, target))
    given: dict[str, Any] = {"axes": [2]} if opset < _AXES_ARE_INPUTS else {}
    read = [axes] if opset >= _AXES_ARE_INPUTS else []
    node.input[0], node.output[0] = wide, found
    for one in node.attribute:
        _widen(one)
    return [
        helper.make_node("Unsqueeze", [source, *read], [wide], proto.unique(f"{node.name}.row", taken), **given),
        node,
        helper.make_node("Squeeze", [found, *read], [target], proto.unique(f"{node.name}.line", taken), **given),
    ]


def _widen(attribute: AttributeProto) -> None:
    """Add the number of the row, before each end of a padding, to a conv's numbers of an axis."""
    if attribute.name in ("kernel_shape", "strides", "dilations"):
        attribute.ints.insert(0, 1)
    elif attribute.name == "pads":
        before, after = attribute.ints
        del attribute.ints[:]
        attribute.ints.extend([0, before, 0, after])
