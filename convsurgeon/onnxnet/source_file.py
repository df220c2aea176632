"""The user's own file: read whole, refused where its convs are no float convs, kept as it is for writing it back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from convsurgeon.base.errors import LoadError, first_line, reason
from convsurgeon.base.files import read_bytes
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import BLOCKED_DOMAIN, OPTIMISED

OLDEST = 7
"""Operator set: onnxruntime runs some nodes of older ones, and cannot add two values."""

_INTEGER = ("QLinearConv", "ConvInteger", "QLinearConvTranspose")


class Source:
    """A file's graph with all its weights, and how it was stored; one for all copies of a network.

    It has no `__dict__` on purpose: whoever puts back what a run of a model has changed need not look into it.
    """

    __slots__ = ("data", "model", "path", "places")

    def __init__(self, path: Path, data: bytes, model: ModelProto, places: tuple[str, ...]) -> None:
        self.path = path
        self.data = data
        """The bytes of the file itself."""
        self.model = model
        self.places = places
        """Names of the files that its weights lie in, relative to its folder; none where it holds them itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _source, (self.path, self.data, self.model.SerializeToString(), self.places)

    @property
    def opset(self) -> int:
        """Of the default operators."""
        return proto.opset_of(self.model)


def _source(path: Path, data: bytes, model: bytes, places: tuple[str, ...]) -> Source:
    return Source(path, data, ModelProto.FromString(model), places)


def read(path: str | Path) -> Source:
    """Reads an ONNX file with the weights that lie beside it.

    Raises:
        LoadError: it is missing, damaged, or no model; or its convs are quantised, or bound to one processor.
    """
    place = Path(path)
    try:
        data = read_bytes(place)
    except OSError as error:
        raise LoadError(f"{place}: cannot be read ({reason(error)}); pass the path of an ONNX file") from error
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's errors share no base class
        raise LoadError(f"{place}: is no ONNX file ({first_line(error)}); export it again") from error
    if not model.graph.node:
        raise LoadError(f"{place}: is no ONNX model, or one without nodes; export it again")
    if (word := next(_no_texts(model), None)) is not None:
        raise LoadError(f"{place}: is damaged: {word!r} stands where a name should be; export it again")
    places = tuple(dict.fromkeys(_places(model)))
    try:
        if places:
            onnx.checker.check_model(str(place))  # among others that no weights lie outside of the folder
            onnx.load_external_data_for_model(model, str(place.parent))
        else:
            onnx.checker.check_model(model)
    except Exception as error:  # likewise
        raise LoadError(f"{place}: is no valid ONNX file: {first_line(error)}; export it again") from error
    _refuse(place, model)
    return Source(place, data, model, places)


def _no_texts(message: Any) -> Iterator[bytes]:
    """Names in a file that are no text, which protobuf hands out as bytes."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            texts = [value] if isinstance(value, str | bytes) else value
            yield from (one for one in texts if isinstance(one, bytes))
        elif field.type == field.TYPE_MESSAGE:
            for one in [value] if hasattr(value, "ListFields") else value:
                yield from _no_texts(one)


def _places(model: ModelProto) -> Iterator[str]:
    for tensor in tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            yield from (item.value for item in tensor.external_data if item.key == "location")


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every stored tensor, in graphs inside of nodes and in constants too."""
    for inner in proto.graphs(graph):
        yield from inner.initializer
        for node in inner.node:
            for item in node.attribute:
                if item.HasField("t"):
                    yield item.t
                yield from item.tensors


def _refuse(path: Path, model: ModelProto) -> None:
    """Old files, quantised convs, and files that a runtime has written for one kind of processor."""
    if 0 < proto.opset_of(model) < OLDEST:
        raise LoadError(
            f"{path}: is of opset {proto.opset_of(model)}, onnxruntime knows {OLDEST} and newer; "
            f"bring it there (onnx.version_converter.convert_version(model, {OLDEST}))"
        )
    for graph in proto.graphs(model.graph):
        made = proto.producers(graph)
        for node in graph.node:
            name = node.name or (node.output[0] if node.output else node.op_type)
            if _lacks(node, proto.opset_of(model)):
                raise LoadError(f"{path}: {node.op_type} {name} lacks an input that it must have; export it again")
            if node.op_type in _INTEGER or _dequantised(node, made):
                raise LoadError(
                    f"{path}: {name} is a quantised conv; bring the float file that it was made from, "
                    "and quantise the result (export(..., int8=True), --int8)"
                )
            if node.domain == BLOCKED_DOMAIN or (node.domain == "com.microsoft" and node.op_type in OPTIMISED):
                raise LoadError(
                    f"{path}: {name} is a {node.domain}.{node.op_type}: onnxruntime has optimised this file for one "
                    "kind of processor; bring the file that it was made from"
                )


def _lacks(node: NodeProto, opset: int) -> bool:
    """Whether an input is left out that is not optional, which the runtime may not survive."""
    if "" not in node.input or node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
        return False
    try:
        formal = onnx.defs.get_schema(node.op_type, opset).inputs
    except onnx.defs.SchemaError:  # of another operator set
        return False
    kinds = [formal[min(place, len(formal) - 1)].option for place, name in enumerate(node.input) if not name and formal]
    return any(kind != onnx.defs.OpSchema.FormalParameterOption.Optional for kind in kinds)


def _dequantised(node: NodeProto, made: dict[str, NodeProto]) -> bool:
    """Whether a conv reads what a DequantizeLinear makes."""
    if node.op_type not in ("Conv", "ConvTranspose"):
        return False
    return any(name in made and made[name].op_type == "DequantizeLinear" for name in node.input[:2])
