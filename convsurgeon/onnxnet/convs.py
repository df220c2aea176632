"""The convs of a file: convs of torch where their weights are constant, or why not, and the names that they get."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx import GraphProto, NodeProto
from torch import nn

from convsurgeon.forms.geometry import Geometry
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.macs import macs_of
from convsurgeon.onnxnet.modules import HiddenConv, PaddingBefore
from convsurgeon.onnxnet.operators.node import NodeView, with_weights
from convsurgeon.onnxnet.padding import Padding
from convsurgeon.onnxnet.values import Values

_KINDS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class ConvParts:
    """A conv, and the padding before it where torch's conv cannot add that itself."""

    conv: nn.Module
    before: PaddingBefore | None


def conv_parts(view: NodeView) -> ConvParts | str:
    """Return a conv node in torch, or why it cannot be a module there."""
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
    return ConvParts(
        with_weights(made, weight, bias), None if padding.symmetric is not None else PaddingBefore(padding)
    )


def convs_per_weight(graph: GraphProto) -> Counter[str]:
    """Count the different convs that read each weight; two nodes that compute the same are one conv."""
    return Counter(key[0] for key in {conv_key(node) for node in graph.node if node.op_type == "Conv"})


def conv_key(node: NodeProto) -> tuple[str, ...]:
    """Return what makes two conv nodes the same conv: weight, bias, attributes."""
    weight, bias = [*node.input[1:3], ""][:2]
    return weight, bias, *sorted(str(item.SerializeToString(deterministic=True)) for item in node.attribute)


# Convs that are left alone.


def hidden_convs(nodes: Sequence[NodeProto], values: Values, reasons: dict[str, str]) -> tuple[HiddenConv, ...]:
    """Return the convs among the nodes of a subgraph, in graphs inside of them and in functions that they call.

    Args:
        nodes: of the subgraph.
        values: of the whole graph.
        reasons: why a conv is not a module, by its first output.
    """
    found = [_hidden(node, values, reasons[node.output[0]]) for node in nodes if node.op_type == "Conv"]
    for node in nodes:
        where = node.name or node.output[0]
        why = f"it runs inside of the {node.op_type} {where}, now and then or again and again"
        for graph in (inner for one in proto.inner_graphs(node) for inner in proto.graphs(one)):
            stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
            convs = [one for one in graph.node if one.op_type == "Conv"]
            found += [_uncounted(one, stored.get(one.input[1]), values.shape(one.input[1]), why) for one in convs]
        for function in values.source.model.functions:
            if (function.domain, function.name) == (node.domain, node.op_type):
                why = f"it runs inside of the function {node.op_type}; inline it (onnx.inliner) to have it rewritten"
                convs = [one for one in function.node if one.op_type == "Conv"]
                found += [_uncounted(one, None, None, why, f"{where}.") for one in convs]
    return tuple(found)


def _hidden(node: NodeProto, values: Values, reason: str) -> HiddenConv:
    shapes = values.shapes([*node.input[:2], node.output[0]])
    weight = shapes.get(node.input[1], (1, 1, 1, 1))
    return HiddenConv(
        node.name or node.output[0],
        f"Conv{len(weight) - 2}d",
        _geometry(node, weight),
        ((shapes[node.input[0]], shapes[node.output[0]]),) if len(shapes) == 3 else (),
        math.prod(weight) if node.input[1] in values.constant else 0,
        macs_of(node, shapes) or 0,
        reason,
    )


def _uncounted(
    conv: NodeProto, stored: tuple[int, ...] | None, outside: tuple[int, ...] | None, reason: str, prefix: str = ""
) -> HiddenConv:
    """Return a conv that runs any number of times; `stored` and `outside` are shapes of its weight, where known."""
    weight = stored or outside or (1, 1, *proto.attributes(conv).get("kernel_shape", (1, 1)))
    params = math.prod(stored) if stored else 0
    name = f"{prefix}{conv.name or conv.output[0]}"
    return HiddenConv(name, f"Conv{len(weight) - 2}d", _geometry(conv, weight), (), params, 0, reason)


def _geometry(node: NodeProto, weight: Sequence[int]) -> Geometry:
    """Return the geometry of a conv that is left alone, for tables."""
    kernel = tuple(weight[2:])
    attributes = proto.attributes(node)
    padding, groups = Padding.of(attributes, kernel), int(attributes.get("group", 1))
    return Geometry(
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


# Names: dotted paths, so that `named("layer4.*")` means what it means in torch.

_UNUSABLE = re.compile(r"[^0-9A-Za-z_.-]+")


def conv_name(node: NodeProto, shared: bool) -> str:
    """Return a conv's name: that of the module that its weight or its node was, else the node's own.

    `layer1.0.conv1.weight` was `layer1.0.conv1`; so was a node `/layer1/layer1.0/conv1/Conv`.

    Args:
        node: the conv.
        shared: whether its weight is that of another conv too, and so says nothing.
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


class ModulePaths:
    """Paths in a tree of modules, each of which is one module's alone.

    Args:
        reserved: attributes of the root, which no module may hide.
    """

    def __init__(self, reserved: frozenset[str]) -> None:
        self._reserved, self._taken, self._folders = reserved, set[str](), set[str]()

    def claim(self, wanted: str) -> str:
        """Return the name as a path that is free, with a number where it is not."""
        parts = [part for part in _UNUSABLE.sub("_", wanted.replace("/", ".")).split(".") if part]
        base = ".".join(f"{part}_" if part in self._reserved else part for part in parts) or "node"
        for above in _folders(base):  # a module in whose place this one would need a folder
            if above in self._taken:
                base = f"{above}_{base[len(above) + 1 :]}"
        name, number = base, 0
        while name in self._folders or not self._taken.isdisjoint([name, *_folders(name)]):
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        self._folders.update(_folders(name))
        return name


def _folders(name: str) -> list[str]:
    return [name[:index] for index, letter in enumerate(name) if letter == "."]
