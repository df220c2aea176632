"""The exporter's graph made fit for devices: every rewrite keeps the function and is exact up to rounding.

* Identity, Dropout and Cast to the same type go.
* A batch norm after a conv, or after a *sum of convs*, goes into the convs. With `y = sum_t W_t x_t + b` and
  `bn(y) = s (y - m) + z` the folded weights are `s W_t` and one bias `s (b - m) + z`. The exporter folds only the first
  kind; without the second every branch form would keep its batch norms, which the runtime executes as depthwise convs.
* Two Slices in a row, as `x[:, :, ::2, ::2]` is exported, become one.
* A mean over all spatial axes becomes GlobalAveragePool, which NNAPI and CoreML take.
* A bias of zeros goes, and equal integer constants (starts, axes, shapes) become one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from convsurgeon.onnxnet import proto


def tidy(graph: GraphProto) -> None:
    """Applies all rewrites in place."""
    _drop_debris(graph)
    _fold_batch_norms(graph)
    _pool_globally(graph)
    _merge_slices(graph)
    _drop_zero_biases(graph)
    proto.drop_unused(graph)
    _share_integers(graph)


_PICKING = ("NonMaxSuppression", "NonZero", "TopK", "Compress", "Unique", "ArgMax")


def picks(graph: GraphProto) -> str:
    """The operators that pick among values, so that rounding and other images change what comes out; empty for none."""
    found = {node.op_type for inner in proto.graphs(graph) for node in inner.node}
    return ", ".join(name for name in _PICKING if name in found)


def owns_constants(node: NodeProto, known: Collection[str], counts: Mapping[str, int]) -> bool:
    """Tell whether all inputs of a node but the first are constants that no other node reads."""
    return all(name in known and counts[name] == 1 for name in node.input[1:] if name)


def infer_shapes(model: ModelProto) -> ModelProto:
    """The model with the shape of every intermediate value written down afresh."""
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=False, data_prop=True)


def _drop_debris(graph: GraphProto) -> None:
    types = proto.element_types(graph)
    for node in list(graph.node):
        same_type = node.op_type == "Cast" and types.get(node.input[0]) == proto.attribute(node, "to", 0)
        if node.op_type in ("Identity", "Dropout") or same_type:
            counts = proto.uses(graph)
            if not any(counts[extra] for extra in node.output[1:]):
                proto.bypass(graph, node)


def _fold_batch_norms(graph: GraphProto) -> None:
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        convs = _summed_convs(graph, norm.input[0])
        known = proto.constants(graph)
        if convs and all(name in known for name in norm.input[1:5]) and len(norm.output) == 1:
            _fold(graph, norm, convs, known)
            proto.bypass(graph, norm)


def _summed_convs(graph: GraphProto, value: str) -> list[NodeProto]:
    """The convs whose sum is the value, or none if anything else takes part or reads along."""
    made, counts = proto.producers(graph), proto.uses(graph)
    known = {tensor.name for tensor in graph.initializer}
    found: list[NodeProto] = []
    pending = [value]
    while pending:
        node = made.get(pending.pop())
        if node is None or counts[node.output[0]] != 1:
            return []
        if node.op_type == "Add":
            pending.extend(node.input)
        elif (
            node.op_type == "Conv"
            and node.input[1] in known
            and counts[node.input[1]] == 1
            and _bias_known(node, known)
        ):
            found.append(node)
        else:
            return []
    return found


def _bias_known(conv: NodeProto, known: set[str]) -> bool:
    return len(conv.input) < 3 or conv.input[2] in known or not conv.input[2]


def _fold(graph: GraphProto, norm: NodeProto, convs: list[NodeProto], known: dict[str, TensorProto]) -> None:
    scale, shift, mean, variance = (proto.array(known[name]) for name in norm.input[1:5])
    factor = scale / np.sqrt(variance + proto.attribute(norm, "epsilon", 1e-5))
    taken = set(known)
    biases = [proto.array(known[conv.input[2]]) for conv in convs if len(conv.input) > 2 and conv.input[2]]
    total = factor * (np.sum(biases, axis=0) - mean if biases else -mean) + shift
    for conv in convs:
        weight = known[conv.input[1]]
        values = proto.array(weight)
        proto.put(graph, weight.name, values * factor.reshape(-1, *[1] * (values.ndim - 1)), like=weight)
        del conv.input[2:]
    last = convs[0]  # the walk starts at the newest branch
    name = proto.unique(last.input[1] + ".folded_bias", taken)
    proto.put(graph, name, total, like=known[last.input[1]])
    last.input.append(name)


def _pool_globally(graph: GraphProto) -> None:
    ranks, known = proto.ranks(graph), proto.constants(graph)
    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in known:
            continue
        rank = ranks.get(node.input[0], 0)
        axes = {int(axis) % rank for axis in proto.array(known[node.input[1]]).reshape(-1)} if rank > 2 else set()
        if axes and axes == set(range(2, rank)):
            _as_pool(graph, index, node, keeps=bool(proto.attribute(node, "keepdims", 1)))


def _as_pool(graph: GraphProto, index: int, node: NodeProto, keeps: bool) -> None:
    node.op_type = "GlobalAveragePool"
    del node.attribute[:]
    del node.input[1:]
    if keeps:
        return
    pooled = node.output[0] + "_pooled"
    flatten = _flatten(graph, pooled, node.output[0])
    flatten.metadata_props.extend(node.metadata_props)
    node.output[0] = pooled
    graph.node.insert(index + 1, flatten)


def _flatten(graph: GraphProto, source: str, target: str) -> NodeProto:
    """Takes the pooled axes away, by Reshape where the channels are known: CoreML's newer format lacks Flatten."""
    infos = (*graph.value_info, *graph.output)
    shape = next((info.type.tensor_type.shape.dim for info in infos if info.name == target), ())
    sizes = [dim.dim_value for dim in shape]
    if len(sizes) != 2 or not sizes[1]:
        return onnx.helper.make_node("Flatten", [source], [target], axis=1)
    wanted = np.array([sizes[0] or -1, sizes[1]], dtype=np.int64)
    name = proto.unique(f"{target}.shape", {tensor.name for tensor in graph.initializer})
    graph.initializer.append(numpy_helper.from_array(wanted, name))
    return onnx.helper.make_node("Reshape", [source, name], [target])


def _merge_slices(graph: GraphProto) -> None:
    for second in [node for node in graph.node if node.op_type == "Slice"]:
        first = proto.producers(graph).get(second.input[0])
        known = proto.constants(graph)
        if first is None or first.op_type != "Slice" or proto.uses(graph)[first.output[0]] != 1:
            continue
        parts = [_slice_arguments(node, known) for node in (first, second)]
        if all(parts) and _different_axes(parts[0][2], parts[1][2]):
            _join_slices(graph, first, second, parts)


def _different_axes(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> bool:
    return not np.intersect1d(first, second).size and min(first.min(), second.min()) >= 0


def _slice_arguments(node: NodeProto, known: dict[str, TensorProto]) -> list[npt.NDArray[np.int64]]:
    """Starts, ends, axes and steps, or nothing where one of them is not a constant."""
    if len(node.input) != 5 or not all(name in known for name in node.input[1:]):
        return []
    return [np.asarray(numpy_helper.to_array(known[name])).reshape(-1) for name in node.input[1:]]


def _join_slices(
    graph: GraphProto, first: NodeProto, second: NodeProto, parts: list[list[npt.NDArray[np.int64]]]
) -> None:
    taken = {tensor.name for tensor in graph.initializer}
    for position in range(4):
        name = proto.unique(f"{second.output[0]}.slice{position}", taken)
        values = np.concatenate([part[position] for part in parts]).astype(np.int64)
        graph.initializer.append(numpy_helper.from_array(values, name))
        second.input[position + 1] = name
    second.input[0] = first.input[0]
    graph.node.remove(first)


def _drop_zero_biases(graph: GraphProto) -> None:
    known = proto.constants(graph)
    for node in graph.node:
        bias = known.get(node.input[2]) if node.op_type == "Conv" and len(node.input) == 3 else None
        if bias is not None and not proto.array(bias).any():
            del node.input[2:]


def _share_integers(graph: GraphProto) -> None:
    """Floating-point constants are left alone: their names say which layer they belong to."""
    first: dict[tuple[object, ...], str] = {}
    renamed: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.data_type in (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL):
            values = numpy_helper.to_array(tensor)
            kept = first.setdefault((tensor.data_type, values.shape, values.tobytes()), tensor.name)
            if kept != tensor.name:
                renamed[tensor.name] = kept
    for tensor in [tensor for tensor in graph.initializer if tensor.name in renamed]:
        graph.initializer.remove(tensor)
    proto.rename(graph, renamed)
