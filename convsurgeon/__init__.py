"""convsurgeon: lighter CNNs from pretrained ones.

    result = convsurgeon.convert(model, example)
    print(result.report)

Importing this package loads nothing but its list of names; each loads its module when it is first asked for, so onnx
and onnxruntime come with `export` and the namespaces `onnx` and `timing` alone. A room never bears the name of one of
them: `convsurgeon.plan` is the function, whatever was imported before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convsurgeon import onnx as onnx
    from convsurgeon import timing as timing
    from convsurgeon.base.errors import (
        BudgetError,
        CalibrationError,
        CaptureError,
        ConvSurgeonError,
        ExportError,
        FormError,
        LatencyError,
        LoadError,
        ParityError,
        PlanError,
        PolicyError,
        RecoveryError,
        WriteError,
    )
    from convsurgeon.base.tables import Table
    from convsurgeon.bundle.bundle import export
    from convsurgeon.bundle.mobile import mobile_check
    from convsurgeon.calibration.images import Images
    from convsurgeon.calibration.synthetic import synthetic_images
    from convsurgeon.conversion import Result, carry_out, convert
    from convsurgeon.distill.augment import Augment
    from convsurgeon.distill.reconstruct import Reconstruction
    from convsurgeon.distill.record import Recovery
    from convsurgeon.fit.fidelity import Fidelity
    from convsurgeon.forms.blueprint import Blueprint
    from convsurgeon.forms.cp import CP
    from convsurgeon.forms.form import Form
    from convsurgeon.forms.geometry import Geometry
    from convsurgeon.forms.keras import from_keras_kernels, to_keras_kernels
    from convsurgeon.forms.lowrank import LowRank
    from convsurgeon.forms.ranks import Energy, Share
    from convsurgeon.forms.separable import DepthwiseSeparable
    from convsurgeon.forms.subspace import BlueprintSubspace
    from convsurgeon.graph.capture import Capture, capture
    from convsurgeon.graph.cost import Cost
    from convsurgeon.graph.example import Example
    from convsurgeon.graph.site import Call, Site
    from convsurgeon.int8.target import Target
    from convsurgeon.planning import select as select
    from convsurgeon.planning.candidates import plan
    from convsurgeon.planning.inspection import inspect
    from convsurgeon.planning.linear import linear_as_conv
    from convsurgeon.planning.plan import Change, Plan, Skip
    from convsurgeon.planning.surgery import operate, rebuild
    from convsurgeon.recovery import recover
    from convsurgeon.report.report import Report
    from convsurgeon.runtime.device_folder import write_device_folder
    from convsurgeon.runtime.runtime import Runtime
    from convsurgeon.runtime.table import LatencyTable
    from convsurgeon.search.budget import Budget
    from convsurgeon.search.sweep import Sweep, sweep

__version__ = "0.1.0"

_HOMES = {
    "base.errors": (
        "BudgetError",
        "CalibrationError",
        "CaptureError",
        "ConvSurgeonError",
        "ExportError",
        "FormError",
        "LatencyError",
        "LoadError",
        "WriteError",
        "ParityError",
        "PlanError",
        "PolicyError",
        "RecoveryError",
    ),
    "base.tables": ("Table",),
    "forms.blueprint": ("Blueprint",),
    "forms.cp": ("CP",),
    "forms.form": ("Form",),
    "forms.geometry": ("Geometry",),
    "forms.keras": (
        "from_keras_kernels",
        "to_keras_kernels",
    ),
    "forms.lowrank": ("LowRank",),
    "forms.ranks": (
        "Energy",
        "Share",
    ),
    "forms.separable": ("DepthwiseSeparable",),
    "forms.subspace": ("BlueprintSubspace",),
    "graph.capture": (
        "Capture",
        "capture",
    ),
    "graph.cost": ("Cost",),
    "graph.example": ("Example",),
    "graph.site": (
        "Call",
        "Site",
    ),
    "planning.candidates": ("plan",),
    "planning.inspection": ("inspect",),
    "planning.linear": ("linear_as_conv",),
    "planning.plan": (
        "Change",
        "Plan",
        "Skip",
    ),
    "planning.surgery": (
        "operate",
        "rebuild",
    ),
    "fit.fidelity": ("Fidelity",),
    "distill.reconstruct": ("Reconstruction",),
    "calibration.images": ("Images",),
    "calibration.synthetic": ("synthetic_images",),
    "search.budget": ("Budget",),
    "search.sweep": (
        "Sweep",
        "sweep",
    ),
    "distill.record": ("Recovery",),
    "report.report": ("Report",),
    "conversion": (
        "Result",
        "carry_out",
        "convert",
    ),
    "distill.augment": ("Augment",),
    "recovery": ("recover",),
    "bundle.bundle": ("export",),
    "bundle.mobile": ("mobile_check",),
    "int8.target": ("Target",),
    "runtime.device_folder": ("write_device_folder",),
    "runtime.runtime": ("Runtime",),
    "runtime.table": ("LatencyTable",),
}
"""Module -> the public names that live in it."""

_HOME = {name: module for module, names in _HOMES.items() for name in names}


_NAMESPACES = {"onnx": "onnx", "select": "planning.select", "timing": "timing"}
"""Modules whose functions are public under their own name, as `cs.onnx.export`."""


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return import_module(f"convsurgeon.{_NAMESPACES[name]}")
    if name not in _HOME:
        raise AttributeError(f"module 'convsurgeon' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"convsurgeon.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


__all__ = [
    "CP",
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
    "Images",
    "LatencyError",
    "LatencyTable",
    "LoadError",
    "LowRank",
    "ParityError",
    "Plan",
    "PlanError",
    "PolicyError",
    "Reconstruction",
    "Recovery",
    "RecoveryError",
    "Report",
    "Result",
    "Runtime",
    "Share",
    "Site",
    "Skip",
    "Sweep",
    "Table",
    "Target",
    "WriteError",
    "capture",
    "carry_out",
    "convert",
    "export",
    "from_keras_kernels",
    "inspect",
    "linear_as_conv",
    "mobile_check",
    "operate",
    "plan",
    "rebuild",
    "recover",
    "sweep",
    "synthetic_images",
    "to_keras_kernels",
    "write_device_folder",
]
