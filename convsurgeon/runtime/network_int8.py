"""A network graph in int8, by the exporter's own steps: sums joined, Q/DQ pairs where the quantiser puts them.

What an int8 network takes depends on its graph, not on its values, so any ranges do and no image is needed. Nodes
keep their numbers, and what the quantiser adds is called after the value that it rounds (`node-12_QuantizeLinear`), so
`NetworkGraph.nodes` still says whose they are. The quantiser reads weights: it gets zeros with one value per output,
and the results then get the real shapes, so that a network of any size takes little memory.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from convsurgeon.int8.float_ends import find_float_ends
from convsurgeon.int8.merge_sums import merge_sums
from convsurgeon.int8.qdq import insert_qdq
from convsurgeon.int8.ranges import nominal_ranges
from convsurgeon.int8.target import Target
from convsurgeon.onnx import graph as shapes
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import QUANTISED_WEIGHT
from convsurgeon.runtime.network_graph import NetworkGraph, Shape, replace_initializers


def quantize_graph(network: NetworkGraph) -> NetworkGraph:
    """Return the same network in int8."""
    model = ModelProto.FromString(network.model.SerializeToString())
    readers = proto.readers(model.graph)
    for name, shape in network.weights.items():
        of_conv = readers[name][-1].op_type == "Conv"  # sums of convs are joined, which needs all of their values
        tensor = _zeros(name, shape) if of_conv else TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        model.graph.initializer.append(tensor)
    merge_sums(model.graph)
    target = Target.onnxruntime()
    left = find_float_ends(model, target)
    shapes.infer_shapes(model)
    weights = _shrink(model.graph)
    made = insert_qdq(model, nominal_ranges(model), target, left)
    large = weights | {name + QUANTISED_WEIGHT: shape for name, shape in weights.items()}
    there = {tensor.name: large[tensor.name] for tensor in made.graph.initializer if tensor.name in large}
    replace_initializers(made.graph, [one for one in made.graph.initializer if one.name not in large])
    int8_weights = frozenset(name for name in there if name not in weights)
    return dataclasses.replace(network, model=made, weights=there, int8_weights=int8_weights)


def _shrink(graph: GraphProto) -> dict[str, Shape]:
    """Leave one value per output of every large weight; return the shapes that they had."""
    found: dict[str, Shape] = {}
    readers = proto.readers(graph)
    for tensor in graph.initializer:
        if proto.is_large(tensor):
            found[tensor.name] = shape = tuple(tensor.dims)
            node = readers[tensor.name][-1]
            transposed = node.op_type == "Gemm" and proto.number_attribute(node, "transB", 0)
            axis = 0 if node.op_type == "Conv" or transposed else 1  # of the outputs
            sizes = tuple(size if place == axis else 1 for place, size in enumerate(shape))
            tensor.CopyFrom(_zeros(tensor.name, sizes))
    return found


def _zeros(name: str, shape: Shape) -> TensorProto:
    return numpy_helper.from_array(np.zeros(shape, dtype=np.float32), name)
