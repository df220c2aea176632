"""The exporter's graph made fit for devices: every rewrite keeps the function and is exact up to rounding.

* Identity, Dropout and Cast to the same type go.
* A batch norm after a conv, or after a *sum of convs*, which the exporter does not fold, goes into the convs. With
  `y = sum_t W_t x_t + b` and `bn(y) = s (y - m) + z` the weights become `s W_t` and one bias `s (b - m) + z`.
* Two Slices in a row, as `x[:, :, ::2, ::2]` is exported, become one.
* A mean over all spatial axes becomes GlobalAveragePool, which NNAPI and CoreML take.
* A bias of zeros goes, and equal integer constants (starts, axes, shapes) become one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from convsurgeon.onnxnet import proto

_PICKING = ("NonMaxSuppression", "NonZero", "TopK", "Compress", "Unique", "ArgMax")


def tidy(graph: GraphProto) -> None:
    """Apply all rewrites in place."""
    _drop_idle_nodes(graph)
    _fold_batch_norms(graph)
    _pool_globally(graph)
    _merge_slices(graph)
    _drop_zero_biases(graph)
    proto.drop_unused(graph)
    _share_integers(graph)


def picking_operators(graph: GraphProto) -> str:
    """Return the operators that pick among values, so that rounding decides what comes out; empty for none."""
    found = {node.op_type for inner in proto.graphs(graph) for node in inner.node}
    return ", ".join(name for name in _PICKING if name in found)


def owns_constants(node: NodeProto, known: Collection[str], counts: Mapping[str, int]) -> bool:
    """Tell whether all inputs of a node but the first are constants that no other node reads."""
    return all(name in known and counts[name] == 1 for name in node.input[1:] if name)


def summed_convs(
    node: NodeProto | None, made: Mapping[str, NodeProto], counts: Mapping[str, int], own: Callable[[NodeProto], bool]
) -> list[NodeProto]:
    """Return the convs whose sum a node makes, or none if others take part, read along, or are not its own."""
    found, pending = [], [node]
    while pending:
        one = pending.pop()
        if one is None or (one is not node and counts[one.output[0]] != 1):
            return []
        if one.op_type == "Add":
            pending += [made.get(name) for name in one.input]
        elif one.op_type == "Conv" and own(one):
            found.append(one)
        else:
            return []
    return found


def infer_shapes(model: ModelProto) -> None:
    """Give a model the shape of every inner value, inferred anew."""
    found = inferred(model)
    del model.graph.value_info[:]
    model.graph.value_info.extend(found.value_info)
    for info, known in zip(model.graph.output, found.output, strict=True):
        info.CopyFrom(known)


def inferred(model: ModelProto) -> GraphProto:
    """Return a model's graph with the shape of every inner value, inferred anew, and without large weights' values."""
    bare = proto.without_values(model)
    del bare.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=False, data_prop=True).graph


def _drop_idle_nodes(graph: GraphProto) -> None:
    types = proto.element_types(graph)
    for node in list(graph.node):
        same_type = node.op_type == "Cast" and types.get(node.input[0]) == proto.number_attribute(node, "to", 0)
        if node.op_type in ("Identity", "Dropout") or same_type:
            counts = proto.uses(graph)
            if not any(counts[extra] for extra in node.output[1:]):
                proto.bypass(graph, node)


def _fold_batch_norms(graph: GraphProto) -> None:
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        convs = _foldable_convs(graph, norm.input[0])
        known = proto.constants(graph)
        if convs and all(name in known for name in norm.input[1:5]) and len(norm.output) == 1:
            _fold(graph, norm, convs, known)
            proto.bypass(graph, norm)


def _foldable_convs(graph: GraphProto, value: str) -> list[NodeProto]:
    """Return the convs of stored weights whose sum is the value, or none if another node reads it."""
    made, counts = proto.producers(graph), proto.uses(graph)
    stored = {tensor.name for tensor in graph.initializer}

    def own(conv: NodeProto) -> bool:
        return counts[conv.input[1]] == 1 and all(name in stored for name in conv.input[1:] if name)

    return summed_convs(made.get(value), made, counts, own) if counts[value] == 1 else []


def _fold(graph: GraphProto, norm: NodeProto, convs: list[NodeProto], known: dict[str, TensorProto]) -> None:
    scale, shift, mean, variance = (proto.array(known[name]) for name in norm.input[1:5])
    factor = scale / np.sqrt(variance + proto.number_attribute(norm, "epsilon", 1e-5))
    biases = [proto.array(known[conv.input[2]]) for conv in convs if len(conv.input) > 2 and conv.input[2]]
    total = factor * (np.sum(biases, axis=0) - mean if biases else -mean) + shift
    for conv in convs:
        weight = known[conv.input[1]]
        values = proto.array(weight)
        proto.put(graph, weight.name, values * factor.reshape(-1, *[1] * (values.ndim - 1)), like=weight)
        del conv.input[2:]
    last = convs[0]  # the walk starts at the newest branch
    name = proto.unique(last.input[1] + ".folded_bias", set(known))
    proto.put(graph, name, total, like=known[last.input[1]])
    last.input.append(name)


def _pool_globally(graph: GraphProto) -> None:
    ranks, known = proto.ranks(graph), proto.constants(graph)
    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in known:
            continue
        rank = ranks.get(node.input[0], 0)
        axes = {int(axis) % rank for axis in proto.array(known[node.input[1]]).reshape(-1)} if rank > 2 else set()
        if not axes or axes != set(range(2, rank)):
            continue
        keeps = bool(proto.number_attribute(node, "keepdims", 1))
        node.op_type = "GlobalAveragePool"
        del node.attribute[:]
        del node.input[1:]
        if not keeps:
            pooled = node.output[0] + "_pooled"
            flatten = _flatten(graph, pooled, node.output[0])
            flatten.metadata_props.extend(node.metadata_props)
            node.output[0] = pooled
            graph.node.insert(index + 1, flatten)


def _flatten(graph: GraphProto, source: str, target: str) -> NodeProto:
    """Remove the pooled axes, by Reshape where the channels are known: CoreML's newer format lacks Flatten."""
    shapes = dict(proto.signature((*graph.value_info, *graph.output)))
    batch, channels = shapes[target] if len(shapes.get(target, ())) == 2 else ("", "")
    if not isinstance(channels, int) or not channels:
        return onnx.helper.make_node("Flatten", [source], [target], axis=1)
    name = proto.unique(f"{target}.shape", {tensor.name for tensor in graph.initializer})
    wanted = np.array([batch if isinstance(batch, int) and batch else -1, channels], dtype=np.int64)
    graph.initializer.append(numpy_helper.from_array(wanted, name))
    return onnx.helper.make_node("Reshape", [source, name], [target])


def _merge_slices(graph: GraphProto) -> None:
    taken = {tensor.name for tensor in graph.initializer}
    for second in [node for node in graph.node if node.op_type == "Slice"]:
        first = proto.producers(graph).get(second.input[0])
        known = proto.constants(graph)
        if first is None or first.op_type != "Slice" or proto.uses(graph)[first.output[0]] != 1:
            continue
        one, two = _slice_arguments(first, known), _slice_arguments(second, known)
        if not one or not two or np.intersect1d(one[2], two[2]).size or min(one[2].min(), two[2].min()) < 0:
            continue
        for position, values in enumerate(zip(one, two, strict=True)):
            name = proto.unique(f"{second.output[0]}.slice{position}", taken)
            graph.initializer.append(numpy_helper.from_array(np.concatenate(values).astype(np.int64), name))
            second.input[position + 1] = name
        second.input[0] = first.input[0]
        graph.node.remove(first)


def _slice_arguments(node: NodeProto, known: dict[str, TensorProto]) -> list[npt.NDArray[np.int64]]:
    """Return starts, ends, axes and steps, or nothing where one of them is not a constant."""
    if len(node.input) != 5 or not all(name in known for name in node.input[1:]):
        return []
    return [np.asarray(numpy_helper.to_array(known[name])).reshape(-1) for name in node.input[1:]]


def _drop_zero_biases(graph: GraphProto) -> None:
    known = proto.constants(graph)
    for node in graph.node:
        bias = known.get(node.input[2]) if node.op_type == "Conv" and len(node.input) == 3 else None
        if bias is not None and not proto.array(bias).any():
            del node.input[2:]


def _share_integers(graph: GraphProto) -> None:
    """Merge equal integer constants; floating-point ones keep their names, which say whose they are."""
    first: dict[tuple[object, ...], str] = {}
    renamed: dict[str, str] = {}
    for tensor in list(graph.initializer):
        if tensor.data_type in (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL):
            values = numpy_helper.to_array(tensor)
            kept = first.setdefault((tensor.data_type, values.shape, values.tobytes()), tensor.name)
            if kept != tensor.name:
                renamed[tensor.name] = kept
                graph.initializer.remove(tensor)
    proto.rename(graph, renamed)
