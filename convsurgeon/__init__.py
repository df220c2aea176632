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

_GONE = {
    "BudgetError": "convsurgeon.errors.BudgetError",
    "CalibrationError": "convsurgeon.errors.CalibrationError",
    "CaptureError": "convsurgeon.errors.CaptureError",
    "ExportError": "convsurgeon.errors.ExportError",
    "FormError": "convsurgeon.errors.FormError",
    "LatencyError": "convsurgeon.errors.LatencyError",
    "LoadError": "convsurgeon.errors.LoadError",
    "ParityError": "convsurgeon.errors.ParityError",
    "PlanError": "convsurgeon.errors.PlanError",
    "PolicyError": "convsurgeon.errors.PolicyError",
    "RecoveryError": "convsurgeon.errors.RecoveryError",
    "WriteError": "convsurgeon.errors.WriteError",
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
    "everything": "convsurgeon.select.everything",
    "kernel_size": "convsurgeon.select.kernel_size",
    "min_channels": "convsurgeon.select.min_channels",
    "min_macs": "convsurgeon.select.min_macs",
    "min_params": "convsurgeon.select.min_params",
    "min_share": "convsurgeon.select.min_share",
    "named": "convsurgeon.select.named",
    "stem": "convsurgeon.select.stem",
    "stride": "convsurgeon.select.stride",
    "Policy": "convsurgeon.select.Policy",
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


_NAMESPACES = {"onnx": "onnx", "select": "planning.select", "timing": "timing"}
"""Modules whose functions are public under their own name, as `cs.onnx.export`."""


def __getattr__(name: str) -> Any:
    if name in _GONE:
        raise AttributeError(f"convsurgeon.{name} is gone; write {_GONE[name]}")
    return _load(name)
