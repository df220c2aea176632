"""The graph of a network with some convs in another form, rewritten from the dense graph and not exported again.

Only the time matters, so weights have shapes and no values: `NetworkGraph.weights` says which there are. Nodes are
numbered (`node-12`), because the runtime derives the names of its own nodes from theirs; `NetworkGraph.nodes` says what
each number stands for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn

from convsurgeon.base.progress import bar
from convsurgeon.forms.as_conv import TransposedAsConv
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.site import Site
from convsurgeon.onnx.exporter import export_graph, without_weights
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.convs import CONVS
from convsurgeon.onnxnet.form_nodes import TakenNames, form_nodes
from convsurgeon.onnxnet.network import OnnxNetwork
from convsurgeon.onnxnet.padding import Padding
from convsurgeon.onnxnet.prelu import rewrite_prelu
from convsurgeon.runtime.measurements import NodeFacts

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Skeleton:
    """The dense graph without its large weights, and the nodes of every site in it, one per call."""

    model: ModelProto
    weights: Mapping[str, Shape]
    sites: Mapping[str, Site]
    convs: Mapping[str, tuple[str, ...]]
    exported: bytes | None
    """The dense graph as torch writes it, without what the model itself holds; None of an ONNX file."""
    shuffles: Mapping[str, TransposedAsConv]
    """Of sites that are transposed convs in the dense graph, and convs before a shuffle in another form."""
    as_it_was: ModelProto | None
    """That graph without its large weights, where PReLU is written in another way in `model`."""


@dataclass(frozen=True)
class NetworkGraph:
    """A network ready to be written: the graph without its large weights, and their shapes by name."""

    model: ModelProto
    weights: Mapping[str, Shape]
    nodes: tuple[NodeFacts, ...]
    int8_weights: frozenset[str] = frozenset()
    """Names of the large weights that have eight bits."""


_REVISION = b"PReLU as products, transposed convs as convs"
"""Of the way in which networks are written: times of another are not of these."""
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_EXPORTED: WeakKeyDictionary[nn.Module, Skeleton] = WeakKeyDictionary()
"""Captured graph -> its skeleton: a search times several networks of one model, and an export takes seconds."""


def exported_before(seen: Capture) -> bytes | None:
    """Return the dense graph of a torch network that was timed, see `write_exported`; None of any other."""
    known = _EXPORTED.get(seen.graph)
    return None if known is None else known.exported


def is_written_anew(seen: Capture) -> bool:
    """Return whether a network that was timed is written in another way than it was; see `prelu`."""
    known = _EXPORTED.get(seen.graph)
    return known is not None and known.as_it_was is not None


def export_skeleton(seen: Capture, *, progress: bool) -> Skeleton:
    """Return the graph that candidate networks are built from."""
    if seen.graph not in _EXPORTED:
        with bar(total=1, desc="exporting", unit="network", show=progress, delay=2.0):
            _EXPORTED[seen.graph] = _skeleton(export_graph(seen.model, seen.example, as_it_was=True), seen)
    return _EXPORTED[seen.graph]


def fingerprint(seen: Capture) -> str:
    """Return what a network's times depend on, as a hash: modules, graph, shapes, and the code of its forwards.

    It does not depend on the weights. To export the network and look at its graph would take seconds.
    """
    found = hashlib.sha256()
    for part in (repr(seen.model), str(seen.graph.graph), str(seen.opaque)):
        found.update(_ADDRESS.sub("", part).encode())
    for name, tensor in (*seen.model.named_parameters(), *seen.model.named_buffers()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    for tensor in seen.example.tensors():
        found.update(f"{tuple(tensor.shape)} {tensor.dtype}\n".encode())
    for kind in dict.fromkeys(type(module) for module in seen.model.modules()):
        code = getattr(kind.forward, "__code__", None)
        if code is not None and not kind.__module__.startswith("torch."):
            found.update(code.co_code + _ADDRESS.sub("", str(code.co_consts)).encode() + str(code.co_names).encode())
    for site in seen.sites:
        found.update(f"{site.names} {site.geometry} {site.calls}\n".encode())
    found.update(_REVISION)
    return found.hexdigest()


def _skeleton(exported: ModelProto, seen: Capture) -> Skeleton:
    """Take the large weights out of an exported graph and find the sites in it; the graph is used up."""
    sites, modules = seen.sites, dict(seen.model.named_modules())
    parents = {site.name: modules.get(site.name.rpartition(".")[0]) for site in sites}
    shuffles = {name: one for name, one in parents.items() if isinstance(one, TransposedAsConv)}
    data = None if isinstance(seen.model, OnnxNetwork) else without_weights(exported, seen.model)
    stored = exported.graph.initializer
    large = {tensor.name: tuple(tensor.dims) for tensor in stored if proto.is_large(tensor)}
    replace_initializers(exported.graph, [one for one in stored if one.name not in large])
    bare = exported.SerializeToString()  # and read again: a graph keeps the memory of what it lost
    dense, as_it_was = ModelProto.FromString(bare), ModelProto.FromString(bare)
    is_other = rewrite_prelu(dense)
    owners = {
        f"{name.removesuffix('.conv') if site.name in shuffles else name}.weight": site.name
        for site in sites
        for name in site.names
    }
    convs: dict[str, tuple[str, ...]] = {}
    for node in dense.graph.node:
        site = owners.get(node.input[1]) if node.op_type in CONVS else None
        if site is not None:
            convs[site] = (*convs.get(site, ()), node.name)
    known = {site.name: site for site in sites}
    return Skeleton(dense, large, known, convs, data, shuffles, as_it_was if is_other else None)


def replace_initializers(graph: GraphProto, kept: Sequence[TensorProto]) -> None:
    """Leave some of a graph's initializers, and forget the shapes of its values."""
    copies = [TensorProto.FromString(one.SerializeToString()) for one in kept]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(copies)


def find_barred(bare: Skeleton) -> dict[str, str]:
    """Return the sites that cannot be timed in another form, with the reasons."""
    made, known = proto.producers(bare.model.graph), proto.constants(bare.model.graph)
    nodes = {node.name: node for node in bare.model.graph.node}
    found = {}
    for name, site in bare.sites.items():
        if name not in bare.convs:
            found[name] = "not found in the exported graph"
        elif (mode := site.geometry.padding_mode) != "zeros" and any(
            _before_padding(nodes[one], made, known) is None for one in bare.convs[name]
        ):
            found[name] = f"padding {mode} is exported in several steps"
    return found


def build_graph(bare: Skeleton, chosen: Mapping[str, Form], *, as_it_was: bool = False) -> NetworkGraph:
    """Return the network with the chosen sites in their forms; `as_it_was` leaves PReLU alone."""
    source = bare.as_it_was if as_it_was and bare.as_it_was is not None else bare.model
    model = ModelProto.FromString(source.SerializeToString())
    graph, writer = model.graph, _Writer(bare, model)
    places = {name: site for site, names in bare.convs.items() for name in names}
    nodes: list[NodeProto] = []
    owner: dict[str, str] = {}
    for node in graph.node:
        site = places.get(node.name, "")
        if site in chosen:
            fresh = writer.in_form(node, bare.sites[site], chosen[site])
        else:
            fresh = [NodeProto.FromString(node.SerializeToString())]
        nodes += fresh
        owner |= {one.output[0]: site for one in fresh}
    del graph.node[:]
    graph.node.extend(nodes)
    proto.drop_unused(graph)
    facts = _number_nodes(graph, owner)
    used = proto.uses(graph)
    return NetworkGraph(model, {name: shape for name, shape in writer.weights.items() if used[name]}, facts)


class _Writer:
    """Writes sites in their forms as nodes of one graph, and stores what they read."""

    def __init__(self, bare: Skeleton, model: ModelProto) -> None:
        self.graph, self.shuffles, self.weights = model.graph, bare.shuffles, dict(bare.weights)
        self.made, self.known = proto.producers(self.graph), proto.constants(self.graph)
        self.names, self.opset, self.stored = TakenNames.of(self.graph), proto.opset_of(model), set[str]()

    def put(self, name: str, tensor: Tensor) -> str:
        if tensor.is_meta and tensor.numel() >= proto.LARGE:
            self.weights[name] = tuple(tensor.shape)
        elif name not in self.stored:
            self.stored.add(name)
            values = _noise(tuple(tensor.shape)) if tensor.is_meta else tensor.numpy()
            self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def in_form(self, node: NodeProto, site: Site, form: Form) -> list[NodeProto]:
        """Return the nodes that take the place of a site's."""
        # the exporter may have given the conv a bias, from a batch norm
        geometry = dataclasses.replace(site.geometry, bias=len(node.input) > 2 and bool(node.input[2]))
        shuffle, is_zeros = self.shuffles.get(site.name), site.geometry.padding_mode == "zeros"
        return form_nodes(
            form.build(geometry, torch.device("meta"), torch.float32),
            node,
            prefix=site.name,
            names=self.names,
            put=self.put,
            opset=self.opset,
            source=None if is_zeros else _before_padding(node, self.made, self.known),
            padding=_padding(site, node) if shuffle is None else None,
            size=site.size(site.calls[0]),
            shuffle=shuffle,
        )


def _padding(site: Site, conv: NodeProto) -> Padding | None:
    """Return the padding of a conv node that the site's module does not have."""
    padding = site.geometry.padding
    if isinstance(padding, str) or any(padding):
        return None
    found = Padding.of(proto.attributes(conv), site.geometry.kernel_size)
    return found if found.axes else None


def _before_padding(conv: NodeProto, made: Mapping[str, NodeProto], known: Mapping[str, TensorProto]) -> str | None:
    """Return what a Pad node before a conv reads, if there is one that pads both spatial axes and not with zeros."""
    pad = made.get(conv.input[0])
    if pad is None or pad.op_type != "Pad" or pad.input[1] not in known or (len(pad.input) > 3 and pad.input[3]):
        return None
    values = numpy_helper.to_array(known[pad.input[1]]).reshape(-1).tolist()
    mode = proto.attributes(pad).get("mode", "constant")
    if mode == "constant" or len(values) != 8 or any(values[:2] + values[4:6]):
        return None
    return str(pad.input[0])


def _number_nodes(graph: GraphProto, owner: Mapping[str, str]) -> tuple[NodeFacts, ...]:
    """Give every node a number for a name, values after it, and return what is known of each from those before it."""
    place = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    facts: list[NodeFacts] = []
    for index, node in enumerate(graph.node):
        site = owner[node.output[0]]
        before = [facts[place[name]] for name in node.input if place.get(name, index) < index]
        near = site or next((one.site or one.near for one in before if one.site or one.near), "")
        first = place.get(node.input[0], -1) if node.input else -1
        conv = facts[first].conv if 0 <= first < index else -1
        if node.op_type == "Conv":
            conv, near = index, site
        facts.append(NodeFacts(node.op_type, site, near, conv))
    fixed = {info.name for info in graph.input}
    renamed: dict[str, str] = {}
    for index, node in enumerate(graph.node):
        node.name = f"node-{index}"
        for number, name in enumerate(node.output):
            if name and name not in fixed:
                renamed[name] = node.name + (f".{number}" if number else "")
    proto.rename(graph, renamed)
    for info in graph.output:  # the runtime names the conv that gives an output after that
        info.name = renamed.get(info.name, info.name)
    return tuple(facts)


def _noise(shape: Shape) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return noise that keeps the size of what goes through it."""
    fan_in = int(np.prod(shape[1:])) or 1
    noise = np.random.default_rng(0).standard_normal(shape) * np.sqrt(2 / fan_in)
    return np.asarray(noise, dtype=np.float32)
