"""Read and change ONNX protobufs: who reads a value, which constants there are, what a node costs, what is unused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

CONVS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
PRODUCTS = {"Gemm": 1, "FusedGemm": 1, "MatMul": 1, "FusedMatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
"""Operators and the position of their kernel or second factor."""

LARGE = 1024
"""Elements from which on a weight is large."""
_INTEGER = ("QLinearConv", "ConvInteger", "QLinearConvTranspose", "QLinearMatMul", "QGemm")
_FLOAT = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def inner_graphs(node: NodeProto) -> list[GraphProto]:
    """Return the graphs among a node's attributes."""
    return [graph for item in node.attribute for graph in (*item.graphs, *([item.g] if item.HasField("g") else []))]


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield the graph and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from graphs(inner)


def reads(node: NodeProto) -> list[str]:
    """Return the names that a node reads, each once, with those that graphs inside it read from outside."""
    found = dict.fromkeys(name for name in node.input if name)
    for graph in inner_graphs(node):
        own = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
        own |= {tensor.values.name for tensor in graph.sparse_initializer}
        for one in graph.node:
            found.update((name, None) for name in reads(one) if name not in own)
            own.update(one.output)
        found.update((info.name, None) for info in graph.output if info.name not in own)
    return list(found)


def stored_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield every stored tensor, with those in constants and in graphs inside nodes."""
    for inner in graphs(graph):
        yield from inner.initializer
        for item in (item for node in inner.node for item in node.attribute):
            if item.HasField("t"):
                yield item.t
            yield from item.tensors


def normalise(graph: GraphProto) -> None:
    """Clear sizes below zero, which some exporters write for open ones, and make sparse weights dense."""
    for info in (*graph.input, *graph.value_info, *graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.Clear()
    for sparse in graph.sparse_initializer:
        shape = tuple(sparse.dims)
        places, values = numpy_helper.to_array(sparse.indices), numpy_helper.to_array(sparse.values)
        dense = np.zeros(shape, values.dtype)
        dense[np.unravel_index(places, shape) if places.ndim == 1 else tuple(places.T)] = values
        graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del graph.sparse_initializer[:]


def is_large(tensor: TensorProto) -> bool:
    """Return whether a tensor is a large weight. Small ones may be shapes or scales, whose values matter to a graph."""
    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1 and math.prod(tensor.dims) >= LARGE


def without_values(model: ModelProto) -> ModelProto:
    """Return a copy whose large weights have shapes and no values, for looking at the graph."""
    bare = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    bare.graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(bare.graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        shape = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        bare.graph.initializer.append(shape if is_large(tensor) else tensor)
    return bare


def check(model: ModelProto, path: Path) -> None:
    """Raise what onnx's checker raises of a file; an output without a declared shape, which it refuses, is legal."""
    outside = any(tensor.data_location == TensorProto.EXTERNAL for tensor in stored_tensors(model.graph))
    if all(kind.elem_type and kind.HasField("shape") for kind in _output_types(model.graph)):
        onnx.checker.check_model(str(path) if outside else model)  # of a path also that no weights lie elsewhere
        return
    declared = ModelProto.FromString(model.SerializeToString())
    if outside:
        onnx.load_external_data_for_model(declared, str(path.parent))  # which looks where they lie, too
    for kind in _output_types(declared.graph):
        kind.elem_type = kind.elem_type or TensorProto.FLOAT
        kind.shape.SetInParent()
    onnx.checker.check_model(declared)


def _output_types(graph: GraphProto) -> Iterator[Any]:
    """Yield the type of every output that is a tensor, or a sequence of them; an output may state none."""
    for info in graph.output:
        kind = info.type
        while word := next((one for one in ("sequence_type", "optional_type") if kind.HasField(one)), ""):
            kind = getattr(kind, word).elem_type
        if kind.WhichOneof("value") in (None, "tensor_type"):
            yield kind.tensor_type


def quantised(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the convs and matrix products of a graph that compute with whole numbers, or with what was one."""
    restored = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.op_type in _INTEGER or (node.op_type in _FLOAT and restored.intersection(node.input[:2])):
            yield node


def label(node: NodeProto) -> str:
    """Return what a node is called in a message: its name, else its first output, else its operator."""
    return node.name or (node.output[0] if node.output else "") or node.op_type


def uses(graph: GraphProto) -> Counter[str]:
    """Count how often each value is read, by nodes (of inner graphs too) and as an output."""
    counts: Counter[str] = Counter(output.name for output in graph.output)
    for inner in graphs(graph):
        for node in inner.node:
            counts.update(node.input)
        if inner is not graph:
            counts.update(output.name for output in inner.output)
    return counts


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """Return the node that makes each value."""
    return {output: node for node in graph.node for output in node.output if output}


def readers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Return the nodes that read each value, each once, in their order."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def stored(graph: GraphProto) -> dict[str, TensorProto]:
    """Return initializers by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def free_inputs(graph: GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that must be given: in old files every initializer is an input, too."""
    known = stored(graph)
    return [info for info in graph.input if info.name not in known]


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Return initializers and the outputs of `Constant` nodes, by name."""
    found = stored(graph)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def store(model: ModelProto, tensor: TensorProto) -> None:
    """Add an initializer; before IR 4 every initializer is an input, too."""
    model.graph.initializer.append(tensor)
    if model.ir_version < 4:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def ranks(graph: GraphProto) -> dict[str, int]:
    """Return the number of axes of every value whose shape the graph states."""
    infos = (*graph.input, *graph.value_info, *graph.output)
    return {
        info.name: len(info.type.tensor_type.shape.dim) for info in infos if info.type.tensor_type.HasField("shape")
    }


def element_types(graph: GraphProto) -> dict[str, int]:
    """Return the element type of every value that the graph declares."""
    return {info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.value_info, *graph.output)}


def number_attribute(node: NodeProto, name: str, default: int | float) -> int | float:
    """Return a number among a node's attributes."""
    value: int | float = attributes(node).get(name, default)
    return value


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name, text as str."""
    found = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename values wherever they are read or made; inputs and outputs of the graph keep their names."""
    for inner in graphs(graph):
        for node in inner.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        for tensor in inner.initializer:
            tensor.name = names.get(tensor.name, tensor.name)
        if inner is not graph:
            for output in inner.output:
                output.name = names.get(output.name, output.name)


def bypass(graph: GraphProto, node: NodeProto) -> bool:
    """Remove a node of one input and one output; return False where inputs or outputs of the graph forbid it."""
    source, target = node.input[0], node.output[0]
    outputs = {output.name for output in graph.output}
    if target not in outputs:
        graph.node.remove(node)
        rename(graph, {target: source})
        return True
    if source in outputs or source not in producers(graph):
        return False  # an output must be made by a node, and by one only
    graph.node.remove(node)
    rename(graph, {source: target})
    return True


def drop_unused(graph: GraphProto) -> None:
    """Remove nodes and initializers that nothing reads."""
    while True:
        counts = uses(graph)
        idle = [node for node in graph.node if not any(counts[name] for name in node.output)]
        for node in idle:
            graph.node.remove(node)
        if not idle:
            break
    kept = [tensor for tensor in graph.initializer if counts[tensor.name]]
    if len(kept) < len(graph.initializer):
        copies = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)


def sort_nodes(graph: GraphProto) -> None:
    """Put every node behind those whose values it reads, and keep the order otherwise."""
    made = {output for node in graph.node for output in node.output if output}
    known, left, order = set[str](), list(graph.node), list[NodeProto]()
    while left:
        later = []
        for node in left:
            if made.intersection(reads(node)) <= known:
                order.append(node)
                known.update(node.output)
            else:
                later.append(node)
        if len(later) == len(left):
            return  # a cycle: the checker will say so
        left = later
    copies = [NodeProto.FromString(node.SerializeToString()) for node in order]
    del graph.node[:]
    graph.node.extend(copies)


def array(tensor: TensorProto) -> npt.NDArray[np.float64]:
    """Return a constant's values in float64."""
    return np.asarray(numpy_helper.to_array(tensor), dtype=np.float64)


def put(graph: GraphProto, name: str, values: npt.NDArray[np.float64], like: TensorProto) -> None:
    """Store an initializer in the type of `like`, in place of one of that name."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(like.data_type)
    made = numpy_helper.from_array(np.ascontiguousarray(values.astype(dtype)), name)
    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(made)
            return
    graph.initializer.append(made)


def unique(name: str, taken: set[str]) -> str:
    """Return the name, with the first free number where it is taken, and add it to `taken`."""
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def opset_of(model: ModelProto) -> int:
    """Return the version of the default operator set of a model."""
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)


def signature(values: Iterable[onnx.ValueInfoProto]) -> tuple[tuple[str, tuple[int | str, ...]], ...]:
    """Return names and shapes of graph inputs or outputs; a symbolic dimension is a string."""
    return tuple((info.name, tuple(map(_size, info.type.tensor_type.shape.dim))) for info in values)


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    named = dim.dim_param or not dim.HasField("dim_value") or dim.dim_value < 0
    return (dim.dim_param or "?") if named else int(dim.dim_value)


def has_macs(node: NodeProto) -> bool:
    """Return whether a node is of a kind that has multiply-accumulates."""
    return node.op_type in CONVS or node.op_type in PRODUCTS or node.op_type == "ConvTranspose"


def macs_of(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the multiply-accumulates of such a node; None where a shape is not known."""
    place = {**CONVS, **PRODUCTS}.get(node.op_type, 1)
    left, right, out = (shapes.get(name) for name in (node.input[0], node.input[place], node.output[0]))
    if left is None or right is None or out is None:
        return None
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    if node.op_type in CONVS:
        return math.prod(out) * math.prod(right[1:])
    summed = left[0] if number_attribute(node, "transA", 0) else left[-1]
    return math.prod(out) * summed
