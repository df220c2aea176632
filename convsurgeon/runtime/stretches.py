"""Stretches of a network, one for each site, for runtimes that fuse all nodes and tell nothing of any.

A stretch is a site with the sums and activations that follow it; all that stands at no site is one more. It is a
network of its own, and is timed alone; all stretches of a network are then scaled to the whole. Sites of one shape have
the same stretch, which is written once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference

from convsurgeon.onnxnet import proto
from convsurgeon.runtime.network_graph import NetworkGraph

_NUMBER = re.compile(r"node-(\d+)")
_FUSED = (
    *("Add", "Mul", "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Gelu"),
    "BatchNormalization",
)
"""Operators after a conv that runtimes fuse into it."""
_LEVELLED = ("Conv", "DequantizeLinear", "PRelu")


def cut_stretches(network: NetworkGraph) -> dict[str, NetworkGraph]:
    """Return the stretches of a network by the name of the first node of each; what stands at no site is the rest."""
    known, parts = _infer(network), dict[str, list[int]]()
    for place, site in enumerate(_owners(network)):
        parts.setdefault(site, []).append(place)
    first = {fact.site: f"node-{place}" for place, fact in reversed(list(enumerate(network.nodes)))} | {"": "rest"}
    return {first[site]: _stretch(network, parts[site], known) for site in sorted(parts, key=lambda site: not site)}


def _owners(network: NetworkGraph) -> list[str]:
    """Return the site that every node stands at; what makes a weight belongs to who reads it."""
    found: list[str] = []
    readers: dict[str, str] = {}  # value -> site of a node that reads it
    for node in reversed(network.model.graph.node):
        match = _NUMBER.match(node.name)
        near = ""
        if match:
            fact = network.nodes[int(match[1])]
            near = fact.site or (fact.near if fact.operator in _FUSED else "")
        site = near or next((readers[name] for name in node.output if name in readers and match is None), "")
        readers |= dict.fromkeys(node.input, site)
        found.append(site)
    return found[::-1]


def _infer(network: NetworkGraph) -> dict[str, ValueInfoProto]:
    """Return type and shape of every value, by its name."""
    model = ModelProto.FromString(network.model.SerializeToString())
    for name, shape in network.weights.items():
        kind = TensorProto.INT8 if name in network.int8_weights else TensorProto.FLOAT
        model.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    return {info.name: info for info in (*graph.input, *graph.value_info, *graph.output)}


def _stretch(network: NetworkGraph, places: list[int], known: Mapping[str, ValueInfoProto]) -> NetworkGraph:
    """Return some nodes as a network of its own, the same wherever it was cut from."""
    graph, inside = network.model.graph, set(places)
    nodes = [graph.node[place] for place in places]
    stored = {tensor.name: tensor for tensor in graph.initializer}
    made = dict.fromkeys(name for node in nodes for name in node.output if name)
    read = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
    elsewhere = {name for place, node in enumerate(graph.node) if place not in inside for name in node.input}
    wanted = elsewhere | {info.name for info in graph.output}
    piece = GraphProto(name="stretch")
    piece.node.extend(nodes)
    piece.initializer.extend(stored[name] for name in read if name in stored)
    piece.input.extend(known[name] for name in read if name not in stored and name not in network.weights)
    piece.output.extend(known[name] for name in made if name in wanted)
    _level(piece)
    renamed = {name: f"v{place}" for place, name in enumerate((*read, *made))}
    proto.rename(piece, renamed)
    for value in (*piece.input, *piece.output):
        value.name = renamed[value.name]
    for place, node in enumerate(piece.node):
        node.name = f"n{place}"
    model = ModelProto(ir_version=network.model.ir_version, opset_import=network.model.opset_import, graph=piece)
    return dataclasses.replace(
        network,
        model=model,
        weights={renamed[name]: network.weights[name] for name in read if name in network.weights},
        nodes=(),
        int8_weights=frozenset(renamed[name] for name in read if name in network.int8_weights),
    )


def _level(piece: GraphProto) -> None:
    """Give biases, scales and slopes one value each, so that sites of one shape have equal stretches."""
    levelled = {name for node in piece.node if node.op_type in _LEVELLED for name in node.input[1:]}
    for tensor in piece.initializer:
        if tensor.name in levelled and math.prod(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor)
            alike = np.full_like(values, 0.01 if values.dtype.kind == "f" else 0)
            tensor.CopyFrom(numpy_helper.from_array(alike, tensor.name))
