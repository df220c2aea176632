"""convsurgeon: lighter CNNs from pretrained ones.

    result = convsurgeon.convert(model, example, calibration=images)
    print(result)

The public names stand in `__init__.pyi`; each loads its module when it is first asked for, so torch, onnx and
onnxruntime load no earlier than they are needed.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

__version__ = "0.1.0"

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_MOVED = {
    "errors": (
        *("BudgetError", "CalibrationError", "CaptureError", "ExportError", "FormError", "LatencyError"),
        *("LoadError", "ParityError", "PlanError", "PolicyError", "RecoveryError", "WriteError"),
    ),
    "select": (
        *("everything", "kernel_size", "min_channels", "min_macs", "min_params"),
        *("min_share", "named", "stem", "stride", "Policy"),
    ),
}
"""What is public in a namespace of its own now."""

_GONE = {
    **{name: f"convsurgeon.{where}.{name}" for where, names in _MOVED.items() for name in names},
    "Table": "result.report",
    "Capture": "capture(model, example)",
    "Cost": "capture(model, example).cost",
    "Call": "capture(model, example).sites",
    "Fidelity": "result.report.fidelity",
    "Reconstruction": "result.report.reconstruction",
    "Recovery": "result.report.recovery",
    "LatencyTable": "convsurgeon.Runtime",
    "operate": "convert(model, example, forms=plan, calibration=False)",
    "synthetic_images": "convert(model, example, calibration=Images(limit=500))",
    "Target": "convsurgeon.onnx.Target",
    "mobile_check": "convsurgeon.onnx.mobile_check",
    "OutputError": "convsurgeon.errors.WriteError",
    "SpatialSeparable": "a class of your own derived from convsurgeon.Form",
    "Tucker": "a class of your own derived from convsurgeon.Form",
    "bench": "convsurgeon.timing.bench",
    "carry_out": "convert(model, example, forms=plan)",
    "check_parity": "convsurgeon.onnx.check_parity",
    "compare_latency": "convsurgeon.timing.compare",
    "convert_fp16": "convsurgeon.onnx.convert_fp16",
    "export_onnx": "convsurgeon.onnx.export",
    "measure_whole": "Runtime().time_plans(capture(model, example), plans)",
    "parse_policy": "convsurgeon.select.parse",
    "peak_memory": "convsurgeon.timing.peak_memory",
    "profile_nodes": "convsurgeon.timing.profile",
    "quantize_int8": "convsurgeon.onnx.quantize",
    "refit_average": "a fresh average of result.model",
    "refit_optimizer": "a fresh optimizer of result.model.parameters()",
    "stale_parameters": "a fresh optimizer of result.model.parameters()",
}
"""Names of earlier versions, and what to write instead."""


def __getattr__(name: str) -> Any:
    if name in _GONE:
        raise AttributeError(f"convsurgeon.{name} is gone; write {_GONE[name]}")
    return _load(name)
