"""The convs of a file: convs of torch where their weights are constant, or why not, and the names that they get."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from onnx import GraphProto, NodeProto
from torch import nn

from convsurgeon.forms.geometry import Geometry
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.modules import HiddenConv
from convsurgeon.onnxnet.operators.node import NodeView, with_weights
from convsurgeon.onnxnet.padding import Padding
from convsurgeon.onnxnet.values import Values

_KINDS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def conv_in_torch(view: NodeView) -> tuple[nn.Module, Padding | None] | str:
    """Return a conv node in torch and the padding that it cannot add itself, or why it cannot be a module there."""
    weight, bias = view.tensor(1), view.tensor(2)
    if weight is None:
        return "its weight is computed by the network; only constant ones are factored"
    if view.has(2) and bias is None:
        return "its bias is computed by the network; only constant ones are kept"
    dims = weight.dim() - 2
    if dims not in (1, 2, 3):
        return f"it has {dims} dimensions; only Conv2d is rewritten"
    kernel, groups = tuple(weight.shape[2:]), view.get("group", 1)
    padding = Padding.of(proto.attributes(view.node), kernel)
    made = _KINDS[dims - 1](
        weight.shape[1] * groups,
        weight.shape[0],
        kernel,
        padding.strides,
        padding.symmetric or 0,
        tuple(view.get("dilations", [1] * dims)),
        groups,
        bias is not None,
        device="meta",
    )
    return with_weights(made, weight, bias), padding if padding.symmetric is None else None


def convs_per_weight(graph: GraphProto) -> Counter[str]:
    """Count the different convs that read each weight; two nodes that compute the same are one conv."""
    return Counter(key[0] for key in {conv_key(node) for node in graph.node if node.op_type == "Conv"})


def conv_key(node: NodeProto) -> tuple[str, ...]:
    """Return what makes two conv nodes the same conv: weight, bias, attributes."""
    weight, bias = [*node.input[1:3], ""][:2]
    return weight, bias, *sorted(str(item.SerializeToString(deterministic=True)) for item in node.attribute)


def hidden_convs(nodes: Sequence[NodeProto], values: Values, reasons: dict[str, str]) -> tuple[HiddenConv, ...]:
    """Return the convs among the nodes of a subgraph, in graphs inside of them and in functions that they call.

    `reasons` says why a conv is not a module, by its first output.
    """
    found = []
    for node in nodes:
        if node.op_type == "Conv":
            shapes = values.shapes([*node.input[:2], node.output[0]])
            weight = shapes.get(node.input[1], (1, 1, 1, 1))
            conv = _hidden(node, weight, reasons[node.output[0]], values.array(node.input[1]) is not None)
            ends = ((shapes[node.input[0]], shapes[node.output[0]]),) if len(shapes) == 3 else ()
            found.append(replace(conv, shapes=ends, macs=proto.macs_of(node, shapes) or 0))
    for node in nodes:
        where = node.name or node.output[0]
        why = f"it runs inside of the {node.op_type} {where}, now and then or again and again"
        for graph in (inner for one in proto.inner_graphs(node) for inner in proto.graphs(one)):
            stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
            for one in (one for one in graph.node if one.op_type == "Conv"):
                shape = stored.get(one.input[1])
                found.append(_hidden(one, shape or values.shape(one.input[1]), why, shape is not None))
        for function in values.source.model.functions:
            if (function.domain, function.name) == (node.domain, node.op_type):
                why = f"it runs inside of the function {node.op_type}; inline it (onnx.inliner) to have it rewritten"
                convs = [one for one in function.node if one.op_type == "Conv"]
                found += [_hidden(one, None, why, False, f"{where}.") for one in convs]
    return tuple(found)


def _hidden(node: NodeProto, weight: tuple[int, ...] | None, reason: str, stored: bool, prefix: str = "") -> HiddenConv:
    """Return a conv with a weight of this shape, as far as that is known; its weight counts where it is stored."""
    attributes = proto.attributes(node)
    weight = weight or (1, 1, *attributes.get("kernel_shape", (1, 1)))
    kernel = tuple(weight[2:])
    padding, groups = Padding.of(attributes, kernel), int(attributes.get("group", 1))
    geometry = Geometry(
        weight[1] * groups,
        max(weight[0], groups),
        kernel,
        padding.strides,
        tuple(max(0, pad) for pad in padding.pads[: len(kernel)]),
        tuple(attributes.get("dilations", (1,) * len(kernel))),
        groups,
        "zeros",
        len(node.input) > 2,
    )
    name, params = f"{prefix}{node.name or node.output[0]}", math.prod(weight) if stored else 0
    return HiddenConv(name, f"Conv{len(kernel)}d", geometry, (), params, 0, reason)


_UNUSABLE = re.compile(r"[^0-9A-Za-z_.-]+")


def conv_name(node: NodeProto, shared: bool) -> str:
    """Return a conv's name: that of the module that its weight or its node was, else the node's own.

    `layer1.0.conv1.weight` was `layer1.0.conv1`; so was a node `/layer1/layer1.0/conv1/Conv`. A `shared` weight is
    that of another conv too, and so says nothing.
    """
    weight = str(node.input[1])
    if weight.endswith(".weight") and not shared:
        return weight.removesuffix(".weight")
    return path_of(node.name) or str(node.name) or weight


def path_of(name: str) -> str:
    """Return `layer1.0.conv1` for `/layer1/layer1.0/conv1/Conv`, and nothing for names of other kinds.

    A part that goes on with the one before replaces it.
    """
    path: list[str] = []
    for part in name.strip("/").split("/")[:-1] if name.startswith("/") else ():
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)


def free_path(wanted: str, taken: dict[str, bool], reserved: Collection[str]) -> str:
    """Return a name as a path in a tree of modules that is free, with a number where it is not, and take it.

    `taken` tells of every path that is there whether it is a module's, or that of a folder of modules; no module may
    hide an attribute of the root that is `reserved`.
    """
    parts = [part for part in _UNUSABLE.sub("_", wanted.replace("/", ".")).split(".") if part]
    base = ".".join(f"{part}_" if part in reserved else part for part in parts) or "node"
    for above in _folders(base):  # a module in whose place this one would need a folder
        if taken.get(above):
            base = f"{above}_{base[len(above) + 1 :]}"
    name, number = base, 0
    while name in taken or any(taken.get(above) for above in _folders(name)):
        number += 1
        name = f"{base}_{number}"
    taken.update(dict.fromkeys(_folders(name), False) | {name: True})
    return name


def _folders(name: str) -> list[str]:
    return [name[:index] for index, letter in enumerate(name) if letter == "."]
