"""PReLU as what onnxruntime computes fast: LeakyRelu where one slope serves all channels, else ReLU and two products.

Its kernel for PReLU asks for the slope of every value and leaves the blocked layout of the convs around it. With a
slope `a` of each channel `prelu(x) = relu(x) - a relu(-x)`, to the bit, whose products the runtime makes depthwise
convs of one pixel: ten times as fast, and in the layout of the convs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.form_nodes import TakenNames


def rewrite_prelu(model: ModelProto) -> bool:
    """Rewrite every PReLU of stored slopes in float32, one for all channels or one for each; return whether any is."""
    graph = model.graph
    passed = {info.name for info in graph.input}
    known = {name: one for name, one in proto.constants(graph).items() if name not in passed}
    names = TakenNames.of(graph)
    slopes = {node.input[1] for node in graph.node if node.op_type == "PRelu"}
    products: dict[str, tuple[str, str]] = {}
    nodes = [part for node in graph.node for part in _parts(node, model, known, products, names)]
    if len(nodes) == len(graph.node) and all(new is old for new, old in zip(nodes, graph.node, strict=True)):
        return False
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    uses = proto.uses(graph)
    for place in reversed(range(len(graph.initializer))):
        if (name := graph.initializer[place].name) in slopes and not uses[name]:
            del graph.initializer[place]
    return True


def _parts(
    node: NodeProto, model: ModelProto, known: Mapping[str, TensorProto], products: dict[str, tuple[str, str]],
    names: TakenNames,
) -> list[NodeProto]:  # fmt: skip
    """Return the nodes that take the place of a node: itself, unless it is a PReLU to be rewritten."""
    slope = known.get(node.input[1]) if node.op_type == "PRelu" else None
    values = None if slope is None else _slopes(slope)
    if slope is None or values is None:
        return [node]
    source, target = node.input[0], node.output[0]
    if values.size == 1:
        return [helper.make_node("LeakyRelu", [source], [target], node.name, alpha=float(values.reshape(())))]
    name = node.input[1]  # that of the tensor in a Constant node may be anything
    if name not in products:
        minus, below = (f"{name}.{part}" for part in ("minus_one", "minus"))
        products[name] = (_put(model, minus, np.full_like(values, -1), names), _put(model, below, -values, names))
    minus, below = products[name]
    parts = ("positive", "turned", "negative", "product")
    positive, turned, negative, product = (proto.unique(f"{target}.{part}", names.values) for part in parts)
    return [
        helper.make_node("Relu", [source], [positive], proto.unique(f"{node.name}.positive", names.nodes)),
        helper.make_node("Mul", [source, minus], [turned], proto.unique(f"{node.name}.turned", names.nodes)),
        helper.make_node("Relu", [turned], [negative], proto.unique(f"{node.name}.negative", names.nodes)),
        helper.make_node("Mul", [negative, below], [product], proto.unique(f"{node.name}.product", names.nodes)),
        helper.make_node("Add", [product, positive], [target], node.name),
    ]


def _slopes(slope: TensorProto) -> npt.NDArray[np.float32] | None:
    """Return one slope (1,) or those of the channels (C, 1, 1); None where the node is to stay."""
    if slope.data_type != TensorProto.FLOAT or slope.data_location == TensorProto.EXTERNAL:
        return None
    values = numpy_helper.to_array(slope)
    if values.size == 1:
        return values.reshape(1)
    trimmed = values.reshape(values.shape[-3:]) if values.size == np.prod(values.shape[-3:]) else values
    if trimmed.ndim != 3 or trimmed.shape[1:] != (1, 1):
        return None
    return trimmed


def _put(model: ModelProto, name: str, values: npt.NDArray[np.float32], names: TakenNames) -> str:
    name = proto.unique(name, names.values)
    proto.store(model, numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
    return name
