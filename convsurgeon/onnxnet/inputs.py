"""The inputs of a file, with the sizes that the example gives their open dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from onnx import TensorProto, ValueInfoProto

from convsurgeon.base.errors import CaptureError
from convsurgeon.onnxnet.network import Port
from convsurgeon.onnxnet.source_file import Source

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

Shapes = Mapping[Any, tuple[int, ...]]


def ports_of(source: Source, shapes: Shapes) -> tuple[Port, ...]:
    """The inputs of a file.

    Args:
        source: the file.
        shapes: of the example's tensors, by name or by place; of an input that is not among them the file must say the
            size, but for the batch, which is 1 where it is open.

    Raises:
        CaptureError: an input is no tensor of numbers, a size is open, or the example has another one.
    """
    stored = {tensor.name for tensor in source.model.graph.initializer}
    infos = [info for info in source.model.graph.input if info.name not in stored]
    given = dict(shapes)
    _check_names(source, infos, given)
    found = []
    for info in infos:
        port, shape = _port(source, info), _given(info.name, given)
        if shape is not None:
            port = _sized(source, port, shape, info)
        elif missing := [name for axis, name in port.open if axis or len(port.shape) < 2]:
            words = "x".join(map(str, _words(info)))
            raise CaptureError(
                f"{source.path}: the size of {info.name} is open ({words}: {', '.join(missing)}); "
                f"pass an example (--input {info.name}={'x'.join(map(str, _suggested(port)))})"
            )
        found.append(port)
    return tuple(found)


def _check_names(source: Source, infos: Sequence[ValueInfoProto], given: Shapes) -> None:
    """Refuses a file without inputs, and shapes of inputs that it has not."""
    if not infos:
        raise CaptureError(f"{source.path}: has no inputs; nothing in it depends on an image")
    names = [info.name for info in infos]
    for key in given:
        if key not in names and not (isinstance(key, int) and key < len(names)):
            word = f"no input {key!r}" if isinstance(key, str) else f"{len(names)} inputs, not {len(given)}"
            raise CaptureError(f"{source.path}: has {word}; its inputs are {', '.join(names)}")


def _suggested(port: Port) -> list[int]:
    """A shape that might fit."""
    axes = {axis for axis, _ in port.open}
    return [224 if axis in axes and axis else size for axis, size in enumerate(port.shape)]


def _given(name: str, left: dict[Any, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape under a name, or the next one without a name."""
    if name in left:
        return left.pop(name)
    places = sorted(key for key in left if isinstance(key, int))
    return left.pop(places[0]) if places else None


def _port(source: Source, info: ValueInfoProto) -> Port:
    kind = info.type.tensor_type.elem_type
    if not info.type.HasField("tensor_type") or kind not in _TYPES:
        raise CaptureError(f"{source.path}: input {info.name} is no tensor of numbers; take that part of the graph out")
    dims = info.type.tensor_type.shape.dim
    shape = tuple(dim.dim_value or 1 for dim in dims)
    unknown = tuple(
        (axis, dim.dim_param or f"{info.name}.{axis}") for axis, dim in enumerate(dims) if not dim.dim_value
    )
    return Port(info.name, _TYPES[kind], shape, unknown, kind)


def _sized(source: Source, port: Port, shape: tuple[int, ...], info: ValueInfoProto) -> Port:
    wanted = _words(info)
    fixed = info.type.tensor_type.HasField("shape")
    axes = {axis for axis, _ in port.open}
    same = len(shape) == len(wanted) and all(
        axis in axes or port.shape[axis] == size for axis, size in enumerate(shape)
    )
    if fixed and not same:
        found = "x".join(map(str, shape))
        raise CaptureError(
            f"{source.path}: input {port.name} is {'x'.join(map(str, wanted))}, the example has {found}; "
            "pass one that fits"
        )
    return replace(port, shape=shape)


def _words(info: ValueInfoProto) -> list[str]:
    return [dim.dim_param or str(dim.dim_value or "?") for dim in info.type.tensor_type.shape.dim]
