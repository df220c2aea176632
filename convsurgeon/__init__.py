"""convsurgeon: lighter CNNs from pretrained ones.

    result = convsurgeon.convert(model, example)
    print(result.report)

Importing this package imports torch and nothing heavier; onnx and onnxruntime load when a name that needs them, such as
`export`, `bench` or `quantize_int8`, is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from convsurgeon.base.errors import (
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
from convsurgeon.base.tables import Table
from convsurgeon.budget.budget import Budget
from convsurgeon.budget.sweep import Sweep, sweep
from convsurgeon.conversion import Result, carry_out, convert
from convsurgeon.fit.fidelity import Fidelity
from convsurgeon.fit.reconstruct import Reconstruction
from convsurgeon.forms.blueprint import Blueprint
from convsurgeon.forms.form import Form
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.keras import from_keras_kernels, to_keras_kernels
from convsurgeon.forms.ranks import Energy, Share
from convsurgeon.forms.separable import DepthwiseSeparable
from convsurgeon.forms.spatial import SpatialSeparable
from convsurgeon.forms.subspace import BlueprintSubspace
from convsurgeon.forms.tucker import Tucker
from convsurgeon.graph.capture import Capture, capture
from convsurgeon.graph.cost import Cost
from convsurgeon.graph.example import Example
from convsurgeon.graph.site import Call, Site
from convsurgeon.plan.candidates import plan
from convsurgeon.plan.inspection import inspect
from convsurgeon.plan.plan import Change, Plan, Skip
from convsurgeon.plan.policy import (
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
from convsurgeon.plan.policy_text import parse_policy
from convsurgeon.plan.surgery import operate, rebuild
from convsurgeon.recover.augment import Augment
from convsurgeon.recover.recover import recover
from convsurgeon.recover.refit import refit_average, refit_optimizer, stale_parameters
from convsurgeon.report.recovery import Recovery
from convsurgeon.report.report import Report

if TYPE_CHECKING:
    from convsurgeon.deploy.bundle.bundle import export
    from convsurgeon.deploy.bundle.mobile import mobile_check
    from convsurgeon.deploy.int8.quantize import convert_fp16, quantize_int8
    from convsurgeon.deploy.onnx.export import export_onnx
    from convsurgeon.deploy.onnx.parity import check_parity
    from convsurgeon.deploy.table.device import write_device_folder
    from convsurgeon.deploy.table.measure import measure_whole
    from convsurgeon.deploy.table.table import LatencyTable
    from convsurgeon.deploy.timing.bench import bench
    from convsurgeon.deploy.timing.latency import compare_latency
    from convsurgeon.deploy.timing.memory import peak_memory
    from convsurgeon.deploy.timing.profile import profile_nodes

_LATE = {
    "LatencyTable": "convsurgeon.deploy.table.table",
    "bench": "convsurgeon.deploy.timing.bench",
    "check_parity": "convsurgeon.deploy.onnx.parity",
    "compare_latency": "convsurgeon.deploy.timing.latency",
    "convert_fp16": "convsurgeon.deploy.int8.quantize",
    "export": "convsurgeon.deploy.bundle.bundle",
    "export_onnx": "convsurgeon.deploy.onnx.export",
    "measure_whole": "convsurgeon.deploy.table.measure",
    "mobile_check": "convsurgeon.deploy.bundle.mobile",
    "peak_memory": "convsurgeon.deploy.timing.memory",
    "profile_nodes": "convsurgeon.deploy.timing.profile",
    "quantize_int8": "convsurgeon.deploy.int8.quantize",
    "write_device_folder": "convsurgeon.deploy.table.device",
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
