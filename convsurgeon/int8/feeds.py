"""Calibration inputs for an ONNX graph, in the batches that it takes, and sessions that run them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper
from torch import Tensor

from convsurgeon.base.errors import ExportError
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import Feed, open_session, session_options


def open_sizes(model: ModelProto) -> ModelProto:
    """Return a copy that runs on images of any size, if its nodes can: only the batch and the channels stay fixed."""
    copy: ModelProto = ModelProto.FromString(model.SerializeToString())
    del copy.graph.value_info[:]
    for info in (*copy.graph.input, *copy.graph.output):
        for axis, size in enumerate(info.type.tensor_type.shape.dim):
            if axis >= 2:
                size.dim_param = f"{info.name}_{axis}"
    return copy


def expose_values(model: ModelProto, names: Iterable[str]) -> ort.InferenceSession:
    """Open an unoptimised session that also returns the named inner values, for images of any size."""
    model = open_sizes(model)
    outputs = {info.name for info in model.graph.output}
    for name in sorted(set(names) - outputs):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return open_session(model, session_options(1, "off"))


def make_feeds(model: ModelProto, calibration: Any) -> list[Feed]:
    """Return calibration inputs in batches of the size that the graph takes, or of 16; a remainder is dropped.

    They are given as a tensor or array with one image per row, or an iterable of these, or of dicts by input name.
    """
    inputs = proto.signature(proto.free_inputs(model.graph))
    parts = [calibration] if isinstance(calibration, Tensor | np.ndarray) else list(calibration)
    feeds: list[Feed] = []
    for part in parts:
        rows = part if isinstance(part, dict) else {inputs[0][0]: part}
        arrays = {
            name: values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
            for name, values in rows.items()
        }
        fits = all(name in arrays and arrays[name].shape == shape for name, shape in inputs)
        feeds.extend([arrays] if fits else _batches(arrays, inputs[0][1]))
    if not feeds or set(feeds[0]) != {name for name, _ in inputs}:
        wanted = ", ".join(f"{name} {list(shape)}" for name, shape in inputs)
        raise ExportError(f"calibration: does not fill one batch of {wanted}; pass inputs of that shape")
    return feeds


def _batches(rows: Feed, shape: tuple[int | str, ...]) -> Iterator[Feed]:
    length = min(len(values) for values in rows.values())
    batch = shape[0] if shape and isinstance(shape[0], int) else min(length, 16)
    for start in range(0, length - batch + 1, max(batch, 1)):
        yield {name: values[start : start + batch] for name, values in rows.items()}
