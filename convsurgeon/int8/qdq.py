"""Put QuantizeLinear/DequantizeLinear pairs into a float graph, by the quantiser of onnxruntime."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from convsurgeon.base.errors import ExportError, first_line
from convsurgeon.int8.ranges import Ranges
from convsurgeon.int8.target import Target
from convsurgeon.onnx import graph
from convsurgeon.onnx.quiet import quiet
from convsurgeon.onnxnet import proto

_OPERATORS = sorted({*QLinearOpsRegistry, *QDQRegistry})

Scales = Mapping[str, npt.NDArray[np.float64]]
"""Name of a weight -> the step of every output's grid, or one step for the whole weight."""


def insert_qdq(
    model: ModelProto, ranges: Ranges, target: Target, left: Collection[str] = (), scales: Scales | None = None
) -> ModelProto:
    """Return a float graph in int8, which stays as it is; the nodes in `left` are not rounded.

    `scales` are those of weights that lie on a grid already; other weights are rounded to the nearest.
    """
    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    exact = ModelProto.FromString(model.SerializeToString())
    if not proto.element_types(exact.graph).keys() >= proto.producers(exact.graph).keys():
        graph.infer_shapes(exact)
    known = {name: _known_scale(steps) for name, steps in (scales or {}).items()}
    try:
        with quiet():
            quantiser = QDQQuantizer(
                exact,
                target.per_channel,
                target.reduce_range,
                QuantType.QInt8,
                {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}[target.activations],
                TensorsData(CalibrationMethod.MinMax, data),
                [],
                sorted(left),
                _OPERATORS,
                {"ActivationSymmetric": target.symmetric, "TensorQuantOverrides": known},
            )
            quantiser.quantize_model()
            quantiser.model.topological_sort()
    except Exception as error:  # the quantiser's exceptions share no base class but Exception
        raise ExportError(f"cannot be quantised: {first_line(error)}") from error
    rounded: ModelProto = quantiser.model.model
    return rounded


def _known_scale(steps: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return what the quantiser is told of a weight whose scales are known: an entry per channel, or one for all."""
    entries: list[dict[str, Any]] = [
        {"quant_type": QuantType.QInt8, "scale": np.float32(step), "zero_point": np.int8(0)} for step in steps
    ]
    if len(entries) > 1:
        entries[0]["axis"] = 0
    return entries
