"""Open onnxruntime sessions: the one place that does, and the one that knows the runtime's internal names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import ModelProto

from convsurgeon.base.errors import LatencyError, first_line
from convsurgeon.base.files import scratch
from convsurgeon.base.normal import check_resources
from convsurgeon.onnxnet import standalone

Level = Literal["all", "extended", "basic", "off"]
Feed = dict[str, npt.NDArray[Any]]

CPU = standalone.CPU

_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
LARGEST_BYTES = 2**31 - 2**20
"""Of one protobuf message; a larger model keeps its weights in a file of their own."""

# Names that the runtime makes up. tests/onnxnet/test_session.py fails where a release changes one of them.

KERNEL_EVENT = standalone.KERNEL_EVENT
LAYOUT_CHANGES = ("ReorderInput", "ReorderOutput", "Transpose")
"""Operators that the runtime inserts to change the memory layout of a value."""
BLOCKED = "_nchwc"
"""End of the name of a node that runs in the blocked memory layout of one kind of processor."""
BLOCKED_DOMAIN = "com.microsoft.nchwc"
FUSED_CONVS = ("FusedConv", "NhwcFusedConv", "NhwcConv")
OPTIMISED = (*FUSED_CONVS, "QGemm", "QLinearAdd", "NhwcMaxPool")
"""Operators of the domain `com.microsoft` that only a runtime writes."""
QUANTISED_WEIGHT = "_quantized"
"""What the quantiser appends to the name of a weight that it has rounded."""
DEQUANTISED = "_DequantizeLinear_Output"
"""What the quantiser appends to the name of a value after its rounding."""
_SUFFIXES = re.compile(rf"({BLOCKED}|_quant|_fused|_token_\d+|/[A-Za-z]*Fusion[A-Za-z]*|_fusion)+[_/]?$")


def strip_suffixes(name: str) -> str:
    """Return a node's name without what the runtime has appended to it."""
    return _SUFFIXES.sub("", name)


def session_options(threads: int | None = None, level: Level = "all", *, spinning: bool = True) -> ort.SessionOptions:
    """Return options of a session that prints nothing and leaves the processor alone between its runs.

    Without `threads` it takes all cores; with `spinning` its threads spin between the nodes of a run, as in use.

    Raises:
        LatencyError: There is no such level, or no machine has so many threads.
    """
    if level not in _LEVELS:
        raise LatencyError(f"level {level!r}: choose one of {', '.join(_LEVELS)}")
    if threads is not None:
        check_threads(threads)
    options: ort.SessionOptions = standalone.base_options(threads, spinning)
    options.graph_optimization_level = _LEVELS[level]
    return options


def check_threads(threads: int) -> None:
    """Refuse a number of threads that no machine can start.

    Raises:
        LatencyError: It is less than one, or far more than there are cores.
    """
    cores = os.cpu_count() or 1
    most = max(64, 4 * cores)
    if not 1 <= threads <= most:
        raise LatencyError(f"threads={threads}: this machine has {cores} cores; pass 1 to {most}")


def check_provider(provider: str) -> None:
    """Refuse an execution provider that this build of the runtime lacks.

    Raises:
        LatencyError: It is not among the available ones, which are named.
    """
    available = ort.get_available_providers()
    if provider not in available:
        raise LatencyError(f"provider {provider!r}: not in this onnxruntime; it has {', '.join(available)}")


def open_session(
    model: Path | ModelProto, options: ort.SessionOptions | None = None, *, provider: str = CPU
) -> ort.InferenceSession:
    """Open a session of a file, or of a graph in memory; the CPU runs the nodes that the provider cannot.

    Raises:
        LatencyError: The provider is not available, or the runtime cannot load the model.
        ResourceError: There is not enough memory, or no thread can be started.
    """
    check_provider(provider)
    how = session_options() if options is None else options
    providers = list(dict.fromkeys((provider, CPU)))
    try:
        if isinstance(model, Path):
            return ort.InferenceSession(str(model), how, providers=providers, enable_fallback=0)
        if weight_bytes_of(model) < LARGEST_BYTES:
            return ort.InferenceSession(model.SerializeToString(), how, providers=providers, enable_fallback=0)
        with scratch() as folder:
            place = folder / "model.onnx"
            copy = ModelProto()
            copy.CopyFrom(model)
            onnx.save(copy, place, save_as_external_data=True, location="weights")
            return ort.InferenceSession(str(place), how, providers=providers, enable_fallback=0)
    except Exception as error:  # the runtime's exceptions share no base class but Exception
        check_resources(error)
        where = str(model) if isinstance(model, Path) else f"graph {model.graph.name!r}"
        raise LatencyError(f"{where}: onnxruntime cannot load it: {first_line(error)}; re-export it") from error


def weight_bytes_of(model: ModelProto) -> int:
    """Return the bytes that a graph takes with its weights, more or less."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) or int(model.ByteSize())


def run_session(session: ort.InferenceSession, feed: Feed, path: Path) -> None:
    """Run a session once, for its errors.

    Raises:
        LatencyError: The runtime fails on this input.
    """
    try:
        session.run(None, feed)
    except Exception as error:  # likewise
        check_resources(error)
        raise LatencyError(f"{path}: cannot be run: {first_line(error)}; pass other sizes=") from error
