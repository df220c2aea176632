"""convsurgeon: lighter CNNs from pretrained ones.

    result = convsurgeon.convert(model, example)
    print(result.report)

Importing this package imports torch and nothing heavier; onnx and onnxruntime load when a name that needs them, such as
`export`, `bench` or `quantize_int8`, is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from convsurgeon.augment import Augment
from convsurgeon.budget import Budget
from convsurgeon.capture import Capture, capture
from convsurgeon.conversion import Result, carry_out, convert
from convsurgeon.cost import Cost
from convsurgeon.errors import (
    BudgetError,
    CalibrationError,
    CaptureError,
    ConvSurgeonError,
    ExportError,
    FormError,
    LatencyError,
    LoadError,
    OutputError,
    ParityError,
    PlanError,
    PolicyError,
    RecoveryError,
)
from convsurgeon.example import Example
from convsurgeon.fidelity import Fidelity
from convsurgeon.form import Energy, Form, Share
from convsurgeon.forms import Blueprint, BlueprintSubspace, DepthwiseSeparable
from convsurgeon.geometry import Geometry
from convsurgeon.inspection import inspect
from convsurgeon.keras_layout import from_keras_kernels, to_keras_kernels
from convsurgeon.lowrank import SpatialSeparable, Tucker
from convsurgeon.plan import Change, Plan, Skip
from convsurgeon.planning import plan
from convsurgeon.policy import (
    Policy,
    everything,
    kernel_size,
    min_channels,
    min_macs,
    min_params,
    min_share,
    named,
    stem,
    stride,
)
from convsurgeon.policy_text import parse_policy
from convsurgeon.reconstruct import Reconstruction
from convsurgeon.recover import recover
from convsurgeon.recovery import Recovery
from convsurgeon.refit import refit_average, refit_optimizer, stale_parameters
from convsurgeon.report import Report
from convsurgeon.site import Call, Site
from convsurgeon.surgery import operate, rebuild
from convsurgeon.tables import Table
from convsurgeon.tradeoff import Sweep, sweep

if TYPE_CHECKING:
    from convsurgeon.deploy.bench import bench
    from convsurgeon.deploy.bundle import export
    from convsurgeon.deploy.device import write_device_folder
    from convsurgeon.deploy.export import export_onnx
    from convsurgeon.deploy.latency import compare_latency
    from convsurgeon.deploy.memory import peak_memory
    from convsurgeon.deploy.mobile import mobile_check
    from convsurgeon.deploy.parity import check_parity
    from convsurgeon.deploy.profiling import profile_nodes
    from convsurgeon.deploy.quantize import convert_fp16, quantize_int8
    from convsurgeon.deploy.table import LatencyTable
    from convsurgeon.deploy.table_measure import measure_whole

_LATE = {
    "LatencyTable": "convsurgeon.deploy.table",
    "bench": "convsurgeon.deploy.bench",
    "check_parity": "convsurgeon.deploy.parity",
    "compare_latency": "convsurgeon.deploy.latency",
    "convert_fp16": "convsurgeon.deploy.quantize",
    "export": "convsurgeon.deploy.bundle",
    "export_onnx": "convsurgeon.deploy.export",
    "measure_whole": "convsurgeon.deploy.table_measure",
    "mobile_check": "convsurgeon.deploy.mobile",
    "peak_memory": "convsurgeon.deploy.memory",
    "profile_nodes": "convsurgeon.deploy.profiling",
    "quantize_int8": "convsurgeon.deploy.quantize",
    "write_device_folder": "convsurgeon.deploy.device",
}
"""Names whose modules import onnx or onnxruntime, and load on first use."""


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module 'convsurgeon' has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "Augment",
    "Blueprint",
    "BlueprintSubspace",
    "Budget",
    "BudgetError",
    "CalibrationError",
    "Call",
    "Capture",
    "CaptureError",
    "Change",
    "ConvSurgeonError",
    "Cost",
    "DepthwiseSeparable",
    "Energy",
    "Example",
    "ExportError",
    "Fidelity",
    "Form",
    "FormError",
    "Geometry",
    "LatencyError",
    "LatencyTable",
    "LoadError",
    "OutputError",
    "ParityError",
    "Plan",
    "PlanError",
    "Policy",
    "PolicyError",
    "Reconstruction",
    "Recovery",
    "RecoveryError",
    "Report",
    "Result",
    "Share",
    "Site",
    "Skip",
    "SpatialSeparable",
    "Sweep",
    "Table",
    "Tucker",
    "bench",
    "capture",
    "carry_out",
    "check_parity",
    "compare_latency",
    "convert",
    "convert_fp16",
    "everything",
    "export",
    "export_onnx",
    "from_keras_kernels",
    "inspect",
    "kernel_size",
    "measure_whole",
    "min_channels",
    "min_macs",
    "min_params",
    "min_share",
    "mobile_check",
    "named",
    "operate",
    "parse_policy",
    "peak_memory",
    "plan",
    "profile_nodes",
    "quantize_int8",
    "rebuild",
    "recover",
    "refit_average",
    "refit_optimizer",
    "stale_parameters",
    "stem",
    "stride",
    "sweep",
    "to_keras_kernels",
    "write_device_folder",
]
