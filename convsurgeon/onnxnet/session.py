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
from convsurgeon.onnxnet.measuring.engine import CPU, LEVELS, Engine, MeasureError, base_options

Level = Literal["all", "extended", "basic", "off"]
Feed = dict[str, npt.NDArray[Any]]

LARGEST_BYTES = 2**31 - 2**20
"""Of one protobuf message; a larger model keeps its weights in a file of their own."""

# Names that the runtime makes up. tests/onnxnet/test_session.py fails where a release changes one of them.

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
    """
    check_level(level)
    if threads is not None:
        check_threads(threads)
    options: ort.SessionOptions = base_options(threads, spinning=spinning)
    options.graph_optimization_level = LEVELS[level]
    return options


def check_level(level: str) -> None:
    """Refuse a level of graph optimisations that is not one of the runtime's."""
    if level not in LEVELS:
        raise LatencyError(f"level {level!r}: choose one of {', '.join(LEVELS)}")


def check_threads(threads: int) -> None:
    """Refuse a number of threads that no machine can start."""
    cores = os.cpu_count() or 1
    most = max(64, 4 * cores)
    if not 1 <= threads <= most:
        raise LatencyError(f"threads={threads}: this machine has {cores} cores; pass 1 to {most}")


def check_engine(engine: Engine) -> None:
    """Refuse threads, a level, a provider or options that this machine lacks, before anything heavy is done."""
    check_threads(engine.threads)
    check_level(engine.level)
    try:
        engine.check()
    except MeasureError as error:
        raise LatencyError(str(error)) from error


def open_timed(path: Path, engine: Engine, log: Path | None = None) -> Any:
    """Open a session of a file to be timed, see `Engine.open`."""
    try:
        return engine.open(path, log)
    except MeasureError as error:
        check_resources(error)
        raise LatencyError(str(error)) from error


def open_session(model: Path | ModelProto, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    """Open a session of a file, or of a graph in memory, on the CPU."""
    how = session_options() if options is None else options
    providers = [CPU]
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
    """Run a session once, for its errors."""
    try:
        session.run(None, feed)
    except Exception as error:  # likewise
        check_resources(error)
        raise LatencyError(f"{path}: cannot be run: {first_line(error)}; pass other sizes=") from error
