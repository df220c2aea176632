"""The user's own file: read whole, refused where its convs are not float convs, and the inputs that it wants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from convsurgeon.base.errors import CaptureError, LoadError, first_line, reason
from convsurgeon.base.files import read_bytes
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.modules import FileInput
from convsurgeon.onnxnet.rows import put_in_rows
from convsurgeon.onnxnet.session import BLOCKED_DOMAIN, OPTIMISED

OLDEST = 7
"""Operator set: onnxruntime runs some nodes of older ones, and cannot add two values."""

_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}


@dataclass(slots=True, eq=False)
class SourceFile:
    """A file's graph with all its weights, and how it was stored; one for all copies of a network.

    `places` are the files that its weights lie in, relative to its folder; empty where it holds them itself. It has no
    `__dict__` on purpose: whoever restores what a run of a model has changed need not look into it.
    """

    path: Path
    data: bytes
    model: ModelProto
    places: tuple[str, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> SourceFile:
        return self

    @property
    def opset(self) -> int:
        """Of the default operators."""
        return proto.opset_of(self.model)


def read_source(path: str | Path) -> SourceFile:
    """Read an ONNX file with the weights that lie beside it."""
    place = Path(path)
    try:
        data = read_bytes(place)
    except OSError as error:
        raise LoadError(f"{place}: cannot be read ({reason(error)}); pass the path of an ONNX file") from error
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's errors share no base class
        raise LoadError(
            f"{place}: is not an ONNX file ({first_line(error)}); export it again, or pass a torch.nn.Module"
        ) from error
    if not model.graph.node:
        raise LoadError(f"{place}: is not an ONNX model, or has no nodes; export it again")
    if (word := next(_undecodable(model), None)) is not None:
        raise LoadError(f"{place}: is damaged: {word!r} stands where a name should be; export it again")
    tensors = proto.stored_tensors(model.graph)
    outside = [item for one in tensors if one.data_location == TensorProto.EXTERNAL for item in one.external_data]
    places = tuple(dict.fromkeys(item.value for item in outside if item.key == "location"))
    try:
        proto.check(model, place)
        if places:
            onnx.load_external_data_for_model(model, str(place.parent))
        proto.normalise(model.graph)
        put_in_rows(model.graph, proto.opset_of(model))
    except Exception as error:  # the checker's errors share no base class
        raise LoadError(f"{place}: is not a valid ONNX file: {first_line(error)}; export it again") from error
    _check_operators(place, model)
    return SourceFile(place, data, model, places)


def _undecodable(message: Any) -> Iterator[bytes]:
    """Yield strings of a message that are not text, which protobuf hands out as bytes."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            texts = [value] if isinstance(value, str | bytes) else value
            yield from (one for one in texts if isinstance(one, bytes))
        elif field.type == field.TYPE_MESSAGE:
            for one in [value] if hasattr(value, "ListFields") else value:
                yield from _undecodable(one)


def _check_operators(path: Path, model: ModelProto) -> None:
    """Refuse old files, quantised convs, and files that a runtime has written for one kind of processor."""
    opset = proto.opset_of(model)
    if 0 < opset < OLDEST:
        raise LoadError(
            f"{path}: is of opset {opset}, onnxruntime knows {OLDEST} and newer; "
            f"bring it there (onnx.version_converter.convert_version(model, {OLDEST}))"
        )
    constants = proto.constants(model.graph)
    for graph in proto.graphs(model.graph):
        if conv := next((node for node in proto.quantised(graph) if "Conv" in node.op_type), None):
            raise LoadError(
                f"{path}: {proto.label(conv)} is a quantised conv; pass the float file that it was made from, "
                "and quantise the result (export(..., int8=True), --int8)"
            )
        for node in graph.node:
            name = proto.label(node)
            if _lacks_input(node, opset):
                raise LoadError(f"{path}: {node.op_type} {name} lacks an input that it must have; export it again")
            if node.op_type == "BatchNormalization" and proto.number_attribute(node, "training_mode", 0):
                raise LoadError(f"{path}: {name} is in training mode; export the model after model.eval()")
            if node.op_type == "Dropout" and node.input[2:] and _is_true(constants.get(node.input[2])):
                raise LoadError(f"{path}: {name} drops values; export the model after model.eval()")
            if node.domain == BLOCKED_DOMAIN or (node.domain == "com.microsoft" and node.op_type in OPTIMISED):
                raise LoadError(
                    f"{path}: {name} is a {node.domain}.{node.op_type}: onnxruntime has optimised this file for one "
                    "kind of processor; pass the file that it was made from"
                )


def _is_true(stored: TensorProto | None) -> bool:
    return stored is not None and bool(onnx.numpy_helper.to_array(stored).all())


def _lacks_input(node: NodeProto, opset: int) -> bool:
    """Return whether an input is left out that is not optional, which the runtime may not survive."""
    if "" not in node.input or node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
        return False
    try:
        formal = onnx.defs.get_schema(node.op_type, opset).inputs
    except onnx.defs.SchemaError:  # an operator of another operator set, which the checker has judged
        return False
    kinds = [formal[min(place, len(formal) - 1)].option for place, name in enumerate(node.input) if not name and formal]
    return any(kind != onnx.defs.OpSchema.FormalParameterOption.Optional for kind in kinds)


def inputs_of(source: SourceFile, shapes: Mapping[Any, tuple[int, ...]]) -> tuple[FileInput, ...]:
    """Return the inputs of a file, on an example whose tensors have these shapes, by name or by place.

    Where an input is not among them the file must state its size, but for the batch, which is 1 where it is open.
    """
    infos = {info.name: info for info in proto.free_inputs(source.model.graph)}
    for info in source.model.graph.output:  # no export could write them again
        if info.type.WhichOneof("value") not in (None, "tensor_type") or _is_text(info):
            raise CaptureError(f"{source.path}: output {info.name} is not a tensor of numbers; cut the graph before it")
    if not infos:
        raise CaptureError(f"{source.path}: has no inputs; nothing in it depends on an image")
    for key in shapes:
        if key not in infos and not (isinstance(key, int) and key < len(infos)):
            word = f"no input {key!r}" if isinstance(key, str) else f"{len(infos)} inputs, not {len(shapes)}"
            raise CaptureError(f"{source.path}: has {word}; its inputs are {', '.join(infos)}")
    unnamed = iter([shapes[key] for key in sorted(key for key in shapes if isinstance(key, int))])
    given = {name: shapes[name] if name in shapes else next(unnamed, None) for name in infos}
    return tuple(_input(source, info, given[name]) for name, info in infos.items())


def _is_text(info: ValueInfoProto) -> bool:
    return bool(info.type.tensor_type.elem_type == TensorProto.STRING)


def _input(source: SourceFile, info: ValueInfoProto, shape: tuple[int, ...] | None) -> FileInput:
    kind, declared = info.type.tensor_type.elem_type, info.type.tensor_type.shape.dim
    if not info.type.HasField("tensor_type") or kind not in _TYPES:
        raise CaptureError(f"{source.path}: input {info.name} is not a tensor of numbers; cut that part off")
    sizes = tuple(dim.dim_value or 1 for dim in declared)
    named = [(axis, dim.dim_param or f"{info.name}.{axis}") for axis, dim in enumerate(declared) if not dim.dim_value]
    made = FileInput(info.name, _TYPES[kind], sizes, tuple(named), kind)
    axes, words = dict(named), "x".join(dim.dim_param or str(dim.dim_value or "?") for dim in declared)
    if shape is None:
        if missing := [name for axis, name in named if axis or len(sizes) < 2]:
            example = "x".join(str(224 if axis in axes and axis else size) for axis, size in enumerate(sizes))
            raise CaptureError(
                f"{source.path}: the size of {info.name} is open ({words}: {', '.join(missing)}); "
                f"pass an example (--input {info.name}={example})"
            )
        return made
    fits = len(shape) == len(sizes) and all(axis in axes or sizes[axis] == size for axis, size in enumerate(shape))
    if info.type.tensor_type.HasField("shape") and not fits:
        raise CaptureError(
            f"{source.path}: input {info.name} is {words}, the example has {'x'.join(map(str, shape))}; pass another"
        )
    return replace(made, shape=shape)
