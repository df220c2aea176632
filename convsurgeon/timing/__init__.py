"""Speed and memory of ONNX files in onnxruntime, public as `cs.timing`; each name loads its module when asked for."""

from importlib import import_module
from typing import Any

__all__ = ["bench", "compare", "peak_memory", "profile"]

_HOMES = {"bench": "benchmark", "compare": "comparison", "peak_memory": "memory", "profile": "node_profile"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"convsurgeon.timing.{_HOMES[name]}"), name)
