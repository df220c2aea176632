"""Check ONNX files of any origin before the runtime sees them, and make inputs for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from convsurgeon.base.errors import LatencyError, first_line, reason
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import Feed

_DEFAULT_SIZE = 64
_MOST_VALUES = 2**31  # of one input


def load_checked(path: Path) -> ModelProto:
    """Return the graph of a file that onnx's checker accepts; external weights must be there but are not read."""
    if not path.is_file():
        what = "is a folder, a device or a pipe" if path.exists() else "no such file"
        raise LatencyError(f"{path}: {what}; pass the path of an ONNX file")
    try:
        if not path.stat().st_size:
            raise LatencyError(f"{path}: is empty; export it again")
        model = onnx.load(path, load_external_data=False)
        if not model.graph.node:
            raise LatencyError(f"{path}: is not an ONNX model, or one without nodes; export it again")
        proto.check(model, path)
    except LatencyError:
        raise
    except OSError as error:
        raise LatencyError(f"{path}: cannot be read: {reason(error)}; check its permissions") from error
    except Exception as error:  # protobuf's and the checker's errors share no base class
        raise LatencyError(f"{path}: is not a valid ONNX file: {first_line(error)}; export it again") from error
    return model


def file_bytes(path: Path, model: ModelProto) -> int:
    """Return the size of the file and of every external file that its weights lie in."""
    tensors = proto.stored_tensors(model.graph)
    places = {item.value for tensor in tensors for item in tensor.external_data if item.key == "location"}
    if any("\0" in place for place in places):
        raise LatencyError(f"{path.parent}: an external file has a NUL in its name; export the model again")
    outside: int = sum((path.parent / place).stat().st_size for place in places)
    return path.stat().st_size + outside


def random_feed(path: Path, seed: int, batch: int, sizes: Mapping[str, int]) -> Feed:
    """Return inputs of a file's own shapes: normal noise for floats, zeros for integers, true for booleans.

    A symbolic first dimension becomes `batch`, another one what `sizes` says of its name, or 64.
    """
    if batch < 1:
        raise LatencyError(f"batch={batch}: pass 1 or more")
    random = np.random.default_rng(seed)
    graph = onnx.load(path, load_external_data=False).graph
    given = proto.free_inputs(graph)
    shapes = [bound_shape(shape, batch, sizes) for _, shape in proto.signature(given)]
    return {info.name: _values(random, info, shape, path) for info, shape in zip(given, shapes, strict=True)}


def bound_shape(shape: Sequence[object], batch: int, sizes: Mapping[str, int]) -> list[int]:
    """Return a shape with its open dimensions set; `sizes` may also name the first one."""
    return [
        size if isinstance(size, int) and size > 0 else sizes.get(str(size), batch if axis == 0 else _DEFAULT_SIZE)
        for axis, size in enumerate(shape)
    ]


def labels(paths: Sequence[Path]) -> list[str]:
    """Return what to call files in a table: their names, or their whole paths where two have the same name."""
    names = [path.name for path in paths]
    return [str(path) if names.count(path.name) > 1 and len(set(paths)) > 1 else path.name for path in paths]


def _values(random: np.random.Generator, info: ValueInfoProto, shape: list[int], path: Path) -> npt.NDArray[Any]:
    number = info.type.tensor_type.elem_type  # 0 for what is not a tensor
    dtype = helper.tensor_dtype_to_np_dtype(number) if number else np.dtype(object)
    if dtype.kind not in "fiub":
        kind = TensorProto.DataType.Name(number).lower() if number else info.type.WhichOneof("value")
        raise LatencyError(f"{path}: has an input of type {kind}, which cannot be drawn; time it without that input")
    if any(size < 0 for size in shape) or math.prod(shape) > _MOST_VALUES:
        raise LatencyError(f"{path}: has an input of {'x'.join(map(str, shape))} values; pass another batch or sizes")
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    return np.full(shape, dtype.kind == "b", dtype=dtype)
