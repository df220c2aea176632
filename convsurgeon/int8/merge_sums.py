"""A sum of convs as one conv over their inputs side by side: the same function, with fewer roundings in int8.

    conv(x1, W1) + conv(x2, W2) = conv([x1; x2], [W1 W2])

The runtime fuses such sums into float convs, but an int8 conv rounds its output before it can be added.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from convsurgeon.onnx.graph import owns_constants
from convsurgeon.onnxnet import proto

_MERGED = "/joined"


def merge_sums(graph: GraphProto) -> int:
    """Merge every sum of two alike convs, in place, and return how many convs went into others.

    Convs without groups are merged whose outputs only the sum reads and whose constants are their own. The merged conv
    keeps the name of the first conv and of the sum's value.
    """
    merged = 0
    while (pair := _find_pair(graph)) is not None:
        _merge(graph, *pair)
        merged += 1
    if merged:
        proto.sort_nodes(graph)
        proto.drop_unused(graph)
    return merged


def _find_pair(graph: GraphProto) -> tuple[NodeProto, NodeProto, NodeProto] | None:
    made, counts, known = proto.producers(graph), proto.uses(graph), proto.constants(graph)
    for node in graph.node:
        convs = [made.get(name) for name in node.input] if node.op_type == "Add" else []
        first, second = convs or (None, None)
        if first is None or second is None or first.name == second.name:
            continue
        free = all(
            one.op_type == "Conv"
            and owns_constants(one, known, counts)
            and proto.number_attribute(one, "group", 1) == 1
            and counts[one.output[0]] == 1
            for one in (first, second)
        )
        if free and _settings(first, known) == _settings(second, known):
            return node, first, second
    return None


def _settings(node: NodeProto, known: Mapping[str, TensorProto]) -> tuple[object, ...]:
    """Return all in which two convs must be alike."""
    outputs, _, *kernel = known[node.input[1]].dims
    usual = {"strides": [1] * len(kernel), "dilations": [1] * len(kernel), "pads": [0] * 2 * len(kernel)}
    found = proto.attributes(node)
    rest = found.get("auto_pad", "NOTSET"), found.get("group", 1)
    return (kernel, outputs, *(found.get(name, values) for name, values in usual.items()), *rest)


def _merge(graph: GraphProto, total: NodeProto, first: NodeProto, second: NodeProto) -> None:
    known, made = proto.constants(graph), proto.producers(graph)
    taken = {tensor.name for tensor in graph.initializer}
    taken |= {name for node in graph.node for name in (*node.input, *node.output)}
    pieces: list[str] = []
    for value in (first.input[0], second.input[0]):
        maker = made.get(value)
        merged_before = maker is not None and maker.op_type == "Concat" and _MERGED in maker.name
        pieces += list(maker.input) if maker is not None and merged_before else [value]
    wide = proto.unique(f"{first.input[0]}{_MERGED}", taken)
    weight = np.concatenate([proto.array(known[node.input[1]]) for node in (first, second)], axis=1)
    proto.put(graph, first.input[1], weight, like=known[first.input[1]])
    inputs = [wide, first.input[1]]
    biases = [proto.array(known[node.input[2]]) for node in (first, second) if len(node.input) > 2 and node.input[2]]
    if biases:
        inputs.append(proto.unique(f"{first.input[1]}/bias", taken))
        proto.put(graph, inputs[2], np.sum(biases, axis=0), like=known[first.input[1]])
    conv = helper.make_node("Conv", inputs, [total.output[0]], name=first.name)
    conv.attribute.extend(first.attribute)
    for node in (total, first, second):
        graph.node.remove(node)
    graph.node.extend([helper.make_node("Concat", pieces, [wide], name=wide, axis=1), conv])
