"""Networks as ONNX files, public as `cs.onnx`; each name loads its module when it is asked for."""

from importlib import import_module
from typing import Any

__all__ = ["Target", "check_parity", "convert_fp16", "export", "mobile_check", "quantize"]

_HOMES = {
    "export": "onnx.exporter",
    "check_parity": "onnx.parity",
    "quantize": "int8.quantize",
    "Target": "int8.target",
    "mobile_check": "bundle.mobile",
    "convert_fp16": "int8.quantize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"convsurgeon.{_HOMES[name]}"), name)
