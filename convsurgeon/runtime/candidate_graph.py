"""The graph of a network with some convs in another form, made by rewriting the dense graph instead of exporting again.

Only the time matters here, so weights have shapes but no values: `Drawn.weights` says which there are, and whoever
writes the file puts noise there. Nodes are numbered (`node-12`), because the runtime names what it makes of them after
their outputs, with suffixes of its own; `Drawn.nodes` says what each number stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from convsurgeon.forms.form import Form
from convsurgeon.forms.geometry import Geometry
from convsurgeon.graph.site import Site
from convsurgeon.onnxnet import proto

LARGE = 1024
"""Elements from which on a weight loses its values. Small tensors may be shapes or scales that must make sense."""

Shape = tuple[int, ...]
Chosen = Mapping[str, Form]


@dataclass(frozen=True)
class Skeleton:
    """The dense graph without its large weights, and the convs in it that are sites."""

    model: ModelProto
    weights: Mapping[str, Shape]
    sites: Mapping[str, Site]
    convs: Mapping[str, tuple[str, ...]]
    """Site -> names of its nodes, one per call."""


@dataclass(frozen=True)
class DrawnNode:
    """What a numbered node is: its operator, the site it belongs to, the site before it, and the conv before it."""

    operator: str
    site: str
    near: str
    conv: int


@dataclass(frozen=True)
class Drawn:
    """A network ready to be written."""

    model: ModelProto
    weights: Mapping[str, Shape]
    nodes: tuple[DrawnNode, ...]
    bytes: frozenset[str] = frozenset()
    """Of the weights those that have eight bits."""


def skeleton(dense: ModelProto, sites: Sequence[Site]) -> Skeleton:
    """Takes the large weights out of an exported graph and finds the sites in it; the graph is used up."""
    graph = dense.graph
    large = {
        tensor.name: tuple(tensor.dims)
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1 and np.prod(tensor.dims) >= LARGE
    }
    kept = [TensorProto.FromString(one.SerializeToString()) for one in graph.initializer if one.name not in large]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    owners = {f"{name}.weight": site.name for site in sites for name in site.names}
    convs: dict[str, list[str]] = {}
    for node in graph.node:
        site = owners.get(node.input[1]) if node.op_type == "Conv" else None
        if site is not None:
            convs.setdefault(site, []).append(node.name)
    found = {name: tuple(nodes) for name, nodes in convs.items()}
    return Skeleton(dense, large, {site.name: site for site in sites}, found)


def obstacle(bare: Skeleton, name: str) -> str | None:
    """Why a site cannot be timed in another form, or None."""
    if name not in bare.convs:
        return "not found in the exported graph"
    geometry = bare.sites[name].geometry
    made, known = proto.producers(bare.model.graph), proto.constants(bare.model.graph)
    nodes = [node for node in bare.model.graph.node if node.name in bare.convs[name]]
    if geometry.padding_mode != "zeros" and any(_margin(node, made, known) is None for node in nodes):
        return f"padding {geometry.padding_mode} is exported in several steps"
    return None


def drawn(bare: Skeleton, chosen: Chosen) -> Drawn:
    """The network with the chosen sites in their forms."""
    model = ModelProto.FromString(bare.model.SerializeToString())
    graph = model.graph
    weights = dict(bare.weights)
    places = {name: site for site, names in bare.convs.items() for name in names}
    made, known = proto.producers(graph), proto.constants(graph)
    nodes: list[NodeProto] = []
    sites: list[str] = []
    for node in graph.node:
        site = places.get(node.name, "")
        if site in chosen:
            writer = _Writer(node, bare.sites[site].geometry, _margin(node, made, known), graph, weights)
            fresh = writer.branches(site, chosen[site])
        else:
            fresh = [NodeProto.FromString(node.SerializeToString())]
        nodes += fresh
        sites += [site] * len(fresh)
    return _numbered(model, nodes, sites, weights)


def _numbered(model: ModelProto, nodes: Sequence[NodeProto], sites: Sequence[str], weights: dict[str, Shape]) -> Drawn:
    """Puts the nodes in, drops what nobody reads any more, and gives numbers for names."""
    graph = model.graph
    del graph.node[:]
    graph.node.extend(nodes)
    owner = {node.output[0]: site for node, site in zip(nodes, sites, strict=True)}
    proto.drop_unused(graph)
    used = proto.uses(graph)
    fixed = {info.name for info in (*graph.input, *graph.output)}
    owners = [owner[node.output[0]] for node in graph.node]
    renamed: dict[str, str] = {}
    for index, node in enumerate(graph.node):
        node.name = f"node-{index}"
        for number, name in enumerate(node.output):
            if name and name not in fixed:
                renamed[name] = node.name + (f".{number}" if number else "")
    proto.rename(graph, renamed)
    return Drawn(model, {name: shape for name, shape in weights.items() if used[name]}, _facts(graph, owners))


def _facts(graph: GraphProto, owners: Sequence[str]) -> tuple[DrawnNode, ...]:
    """What is known of every node, from the nodes before it."""
    place = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    facts: list[DrawnNode] = []
    for node, site in zip(graph.node, owners, strict=True):
        before = [facts[place[name]] for name in node.input if name in place and place[name] < len(facts)]
        near = site or next((one.site or one.near for one in before if one.site or one.near), "")
        first = place.get(node.input[0], -1) if node.input else -1
        conv = len(facts) if node.op_type == "Conv" else facts[first].conv if 0 <= first < len(facts) else -1
        if node.op_type == "Conv" and not site:
            near = ""
        facts.append(DrawnNode(node.op_type, site, near, conv))
    return tuple(facts)


@dataclass(frozen=True)
class _Margin:
    """Padding that stands before a conv as a node of its own: where it reads, how, and how much of each side."""

    source: str
    mode: str
    pads: tuple[int, ...]


def _margin(conv: NodeProto, made: Mapping[str, NodeProto], known: Mapping[str, TensorProto]) -> _Margin | None:
    pad = made.get(conv.input[0])
    if pad is None or pad.op_type != "Pad" or pad.input[1] not in known or (len(pad.input) > 3 and pad.input[3]):
        return None
    values = numpy_helper.to_array(known[pad.input[1]]).reshape(-1).tolist()
    mode = next((item.s.decode() for item in pad.attribute if item.name == "mode"), "constant")
    if mode == "constant" or len(values) != 8 or any(values[:2] + values[4:6]):
        return None
    return _Margin(pad.input[0], mode, (*values[2:4], *values[6:8]))


class _Writer:
    """Writes the branches of a form in the place of one conv node."""

    def __init__(
        self, conv: NodeProto, geometry: Geometry, margin: _Margin | None, graph: GraphProto, weights: dict[str, Shape]
    ) -> None:
        self._conv, self._geometry, self._graph, self._weights = conv, geometry, graph, weights
        self._margin = margin if geometry.padding_mode != "zeros" else None
        self._source = self._margin.source if self._margin is not None else conv.input[0]
        self._count = 0
        self._margins: dict[tuple[str, Shape], str] = {}

    def branches(self, site: str, form: Form) -> list[NodeProto]:
        """Chains of convs and their sum, which has the name that the conv's output had."""
        nodes: list[NodeProto] = []
        total = ""
        stages = form.stages(self._geometry)
        for branch in range(form.branches):
            value = self._source
            for name, stage in stages:
                bias = self._bias() if branch == 0 and name == stages[-1][0] else []
                made = self._stage(value, f"{site}.branches.{branch}.{name}.weight", stage, bias)
                nodes += made
                value = made[-1].output[0]
            if total:  # the new term first, as the modules have it
                nodes.append(helper.make_node("Add", [value, total], [self._fresh()]))
            total = nodes[-1].output[0]
        nodes[-1].output[0] = self._conv.output[0]
        return nodes

    def _bias(self) -> list[str]:
        return [name for name in self._conv.input[2:] if name]

    def _fresh(self) -> str:
        self._count += 1
        return f"{self._conv.output[0]}/{self._count}"

    def _stage(self, source: str, weight: str, stage: Geometry, bias: list[str]) -> list[NodeProto]:
        """One conv, with its margin before it where that is a node of its own."""
        nodes: list[NodeProto] = []
        pads = self._pads(stage)
        if self._margin is not None and any(pads):
            nodes, source = self._padded(source, tuple(pads), self._margin.mode)
            pads = [0, 0, 0, 0]
        shape = (stage.out_channels, stage.in_per_group, *stage.kernel_size)
        if int(np.prod(shape)) >= LARGE:
            self._weights[weight] = shape
        elif all(tensor.name != weight for tensor in self._graph.initializer):
            self._graph.initializer.append(numpy_helper.from_array(small(shape), weight))
        attributes: dict[str, Any] = {
            "kernel_shape": list(stage.kernel_size),
            "strides": list(stage.stride),
            "pads": pads,
        }
        attributes |= {"dilations": list(stage.dilation)}
        conv = helper.make_node("Conv", [source, weight, *bias], [self._fresh()], group=stage.groups, **attributes)
        return [*nodes, conv]

    def _padded(self, source: str, pads: Shape, mode: str) -> tuple[list[NodeProto], str]:
        """A margin around a value, made once for all branches, as the exporter does."""
        if (source, pads) in self._margins:
            return [], self._margins[source, pads]
        name = self._margins[source, pads] = self._fresh()
        amounts = np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], dtype=np.int64)
        self._graph.initializer.append(numpy_helper.from_array(amounts, f"{name}.pads"))
        return [helper.make_node("Pad", [source, f"{name}.pads"], [name], mode=mode)], name

    def _pads(self, stage: Geometry) -> list[int]:
        """What of the conv's own padding a stage takes: that of the axes along which it has the window."""
        whole, axes = self._geometry, range(len(stage.kernel_size))
        if isinstance(stage.padding, str):
            taken = [stage.kernel_size[axis] == whole.kernel_size[axis] for axis in axes]
        else:
            taken = [stage.padding[axis] > 0 for axis in axes]
        pads = self._margin.pads if self._margin is not None else self._own_pads()
        return [pad if taken[index % len(taken)] else 0 for index, pad in enumerate(pads)]

    def _own_pads(self) -> tuple[int, ...]:
        """(top, left, bottom, right) of the conv node."""
        values = {item.name: helper.get_attribute_value(item) for item in self._conv.attribute}
        if values.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
            spans = [(k - 1) * d for k, d in zip(self._geometry.kernel_size, self._geometry.dilation, strict=True)]
            return (*(span // 2 for span in spans), *(span - span // 2 for span in spans))
        return tuple(values.get("pads", (0,) * 4))


def small(shape: Shape) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Noise that keeps the size of what goes through it."""
    fan_in = int(np.prod(shape[1:])) or 1
    noise = np.random.default_rng(0).standard_normal(shape) * np.sqrt(2 / fan_in)
    return np.asarray(noise, dtype=np.float32)
