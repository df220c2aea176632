"""The convs of a file: convs of torch where their weights are constant, or why not, and the names that they get."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from onnx import GraphProto, NodeProto
from torch import Tensor, nn

from convsurgeon.forms.as_conv import CutConvTranspose2d
from convsurgeon.forms.geometry import Geometry
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.modules import HiddenConv
from convsurgeon.onnxnet.operators.node import NodeView, with_weights
from convsurgeon.onnxnet.padding import Padding
from convsurgeon.onnxnet.values import Values

CONVS = ("Conv", "ConvTranspose")
"""Operators of convs."""

_KINDS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def conv_in_torch(view: NodeView, open_sizes: bool) -> tuple[nn.Module, Padding | None] | str:
    """Return a conv node in torch and the padding that it cannot add itself, or why it cannot be a module there.

    `open_sizes` tells whether images of other sizes than the example's may come.
    """
    weight, bias = view.tensor(1), view.tensor(2)
    if weight is None:
        return "its weight is computed by the network; only constant ones are factored"
    if view.has(2) and bias is None:
        return "its bias is computed by the network; only constant ones are kept"
    dims = weight.dim() - 2
    if dims not in (1, 2, 3):
        return f"it has {dims} dimensions; only Conv2d is rewritten"
    if view.node.op_type == "ConvTranspose":
        made = _transposed(view, weight, bias, open_sizes)
        return made if isinstance(made, str) else (made, None)
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


def _transposed(view: NodeView, weight: Tensor, bias: Tensor | None, open_sizes: bool) -> nn.Module | str:
    """Return a transposed conv node in torch, or why it cannot be a module there."""
    kernel, groups, ones = tuple(weight.shape[2:]), view.get("group", 1), (1,) * view.dims
    if open_sizes and view.get("output_shape"):
        return "its output_shape is one size, and sizes of the file are open; export it with pads"
    stride, dilation = tuple(view.get("strides", ones)), tuple(view.get("dilations", ones))
    added = view.get("output_padding", (0,) * view.dims)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    before, after = _left_out(view, [span + more for span, more in zip(spans, added, strict=True)], stride)
    more = tuple(one + first - last for one, first, last in zip(added, before, after, strict=True))
    if min(more) < 0 and view.dims != 2:
        return f"ConvTranspose{view.dims}d: only Conv2d is rewritten"
    kind: Any = CutConvTranspose2d if min(more) < 0 else _TRANSPOSED[view.dims - 1]
    made = kind(
        weight.shape[0], weight.shape[1] * groups, kernel, stride, before, more, groups, bias is not None, dilation,
        device="meta",
    )  # fmt: skip
    return with_weights(made, weight, bias)


def _left_out(view: NodeView, spans: Sequence[int], stride: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how much of what windows of these spans make is left out, at the beginning and the end of every axis."""
    rule, half = view.get("auto_pad", "NOTSET"), view.dims
    if rule == "NOTSET" and not view.get("output_shape"):
        pads = tuple(view.get("pads", (0,) * 2 * half))
        return pads[:half], pads[half:]
    ends = zip(view.shape()[2:], (view.values.shape(view.node.output[0]) or ())[2:], strict=True)
    totals = [step * (size - 1) + span - made for (size, made), span, step in zip(ends, spans, stride, strict=True)]
    small, large = (tuple(max(0, total + more) // 2 for total in totals) for more in (0, 1))
    before = small if rule == "SAME_UPPER" else large
    return before, tuple(total - one for total, one in zip(totals, before, strict=True))


def convs_per_weight(graph: GraphProto) -> Counter[str]:
    """Count the different convs that read each weight; two nodes that compute the same are one conv."""
    return Counter(key[0] for key in {conv_key(node) for node in graph.node if node.op_type in CONVS})


def conv_key(node: NodeProto) -> tuple[str, ...]:
    """Return what makes two conv nodes the same conv: weight, bias, operator, attributes.

    With an `output_shape` a node's padding follows from the size of what it reads, so that it is one of its own.
    """
    weight, bias = [*node.input[1:3], ""][:2]
    own = node.output[0] if any(item.name == "output_shape" for item in node.attribute) else ""
    attributes = sorted(str(item.SerializeToString(deterministic=True)) for item in node.attribute)
    return weight, bias, node.op_type, own, *attributes


def hidden_convs(nodes: Sequence[NodeProto], values: Values, reasons: dict[str, str]) -> tuple[HiddenConv, ...]:
    """Return the convs among the nodes of a subgraph, in graphs inside of them and in functions that they call.

    `reasons` says why a conv is not a module, by its first output.
    """
    found = []
    for node in nodes:
        if node.op_type in CONVS:
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
            for one in (one for one in graph.node if one.op_type in CONVS):
                shape = stored.get(one.input[1])
                found.append(_hidden(one, shape or values.shape(one.input[1]), why, shape is not None))
        for function in values.source.model.functions:
            if (function.domain, function.name) == (node.domain, node.op_type):
                why = f"it runs inside of the function {node.op_type}; inline it (onnx.inliner) to have it rewritten"
                convs = [one for one in function.node if one.op_type in CONVS]
                found += [_hidden(one, None, why, False, f"{where}.") for one in convs]
    return tuple(found)


def _hidden(node: NodeProto, weight: tuple[int, ...] | None, reason: str, stored: bool, prefix: str = "") -> HiddenConv:
    """Return a conv with a weight of this shape, as far as that is known; its weight counts where it is stored."""
    attributes = proto.attributes(node)
    weight = weight or (1, 1, *attributes.get("kernel_shape", (1, 1)))
    kernel = tuple(weight[2:])
    padding, groups = Padding.of(attributes, kernel), int(attributes.get("group", 1))
    is_transposed = node.op_type == "ConvTranspose"
    channels = (weight[1] * groups, max(weight[0], groups))
    geometry = Geometry(
        channels[is_transposed],
        channels[not is_transposed],
        kernel,
        padding.strides,
        tuple(max(0, pad) for pad in padding.pads[: len(kernel)]),
        tuple(attributes.get("dilations", (1,) * len(kernel))),
        groups,
        "zeros",
        len(node.input) > 2,
        is_transposed,
    )
    name, params = f"{prefix}{node.name or node.output[0]}", math.prod(weight) if stored else 0
    return HiddenConv(name, f"{node.op_type}{len(kernel)}d", geometry, (), params, 0, reason)


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
