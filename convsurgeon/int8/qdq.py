"""From a float graph and ranges to one with QuantizeLinear/DequantizeLinear pairs, by the runtime's own quantiser."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto
from onnxruntime import quantization
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from convsurgeon.base.errors import ExportError, first_line
from convsurgeon.int8.ranges import Ranges
from convsurgeon.int8.target import Target
from convsurgeon.onnx import graph
from convsurgeon.onnxnet import proto

_OPERATORS = sorted({*QLinearOpsRegistry, *QDQRegistry})


Scales = Mapping[str, npt.NDArray[np.float64]]
"""Name of a weight -> the step of every output's grid, or one step for all of it."""


def rounded(
    model: ModelProto, ranges: Ranges, target: Target, left: Collection[str] = (), scales: Scales | None = None
) -> ModelProto:
    """The graph in int8; the float one stays as it is.

    Args:
        model: a float graph.
        ranges: of its values.
        target: what for.
        left: names of nodes that stay in float.
        scales: of weights that are on a grid already; others are rounded to the nearest.

    Raises:
        ExportError: the quantiser fails on it.
    """
    kinds = {"uint8": quantization.QuantType.QUInt8, "int8": quantization.QuantType.QInt8}
    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    try:
        with quietly():
            quantiser = QDQQuantizer(
                _typed(ModelProto.FromString(model.SerializeToString())),
                target.per_channel,
                target.reduce_range,
                quantization.QuantType.QInt8,
                kinds[target.activations],
                TensorsData(quantization.CalibrationMethod.MinMax, data),
                [],
                sorted(left),
                _OPERATORS,
                {
                    "ActivationSymmetric": target.symmetric,
                    "TensorQuantOverrides": {name: _known(steps) for name, steps in (scales or {}).items()},
                },
            )
            quantiser.quantize_model()
            quantiser.model.topological_sort()
    except Exception as error:  # whatever the quantiser trips over
        raise ExportError(f"cannot be quantised: {first_line(error)}") from error
    made: ModelProto = quantiser.model.model
    return made


def _typed(model: ModelProto) -> ModelProto:
    """The graph with the type of every value written down."""
    types = proto.element_types(model.graph)
    known = all(name in types for name in proto.producers(model.graph))
    return model if known else graph.infer_shapes(model)


def _known(steps: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    """What the quantiser is told of a weight whose scales are known: one entry per channel, or one for all."""
    values = [
        {"quant_type": quantization.QuantType.QInt8, "scale": np.float32(step), "zero_point": np.int8(0)}
        for step in steps
    ]
    return [{**value, "axis": 0} if len(values) > 1 and not number else value for number, value in enumerate(values)]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Drop what the quantiser prints, and its advice on the root logger, which does not apply to tidied graphs."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addFilter(_not_of_the_quantiser)
    root.addHandler(handler)  # where there is none, `logging.warning` adds one for good
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.removeHandler(handler)
        root.removeFilter(_not_of_the_quantiser)


def _not_of_the_quantiser(record: logging.LogRecord) -> bool:
    return "quantization" not in Path(record.pathname).parts
