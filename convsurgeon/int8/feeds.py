"""Calibration inputs of any shape, in the batches that an ONNX file takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto
from torch import Tensor

from convsurgeon.base.errors import ExportError
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import Feed

_SPACE = 2
"""Axis of a value from which on it is an image's size."""


def opened_sizes(model: ModelProto) -> ModelProto:
    """A copy that runs on images of any size, if its nodes can: shapes of values are left out beyond the channels."""
    found: ModelProto = ModelProto.FromString(model.SerializeToString())
    del found.graph.value_info[:]
    for info in (*found.graph.input, *found.graph.output):
        for axis, size in enumerate(info.type.tensor_type.shape.dim):
            if axis >= _SPACE:
                size.dim_param = f"{info.name}_{axis}"
    return found


def feeds_of(model: ModelProto, calibration: Any) -> list[Feed]:
    """The calibration inputs in batches of the size the file wants.

    Args:
        model: The file; a symbolic batch takes 16 at a time.
        calibration: A tensor or array with one image per row, or an iterable of such, or of dicts by input name.

    Raises:
        ExportError: They do not fill one batch, or miss an input.
    """
    inputs = proto.signature(model.graph.input)
    parts = [calibration] if isinstance(calibration, Tensor | np.ndarray) else list(calibration)
    feeds: list[Feed] = []
    for part in parts:
        rows = part if isinstance(part, dict) else {inputs[0][0]: part}
        arrays = {name: _array(values) for name, values in rows.items()}
        whole = all(name in arrays and arrays[name].shape == shape for name, shape in inputs)
        feeds.extend([arrays] if whole else _batches(arrays, inputs[0][1]))
    if not feeds or set(feeds[0]) != {name for name, _ in inputs}:
        wanted = ", ".join(f"{name} {list(shape)}" for name, shape in inputs)
        raise ExportError(f"calibration: does not fill one batch of {wanted}; pass inputs of that shape")
    return feeds


def _batches(rows: Feed, shape: tuple[int | str, ...]) -> Iterator[Feed]:
    length = min(len(values) for values in rows.values())
    batch = shape[0] if shape and isinstance(shape[0], int) else min(length, 16)
    for start in range(0, length - batch + 1, max(batch, 1)):
        yield {name: values[start : start + batch] for name, values in rows.items()}


def _array(values: Any) -> npt.NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
