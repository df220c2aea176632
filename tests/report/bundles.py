"""Bundles that were never written, with figures and names of our choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convsurgeon.int8.compare import Agreement, LayerError
from convsurgeon.int8.quantize import Quantized
from convsurgeon.onnx.exporter import OnnxFile
from convsurgeon.onnx.metadata import Preparation
from convsurgeon.onnx.parity import Parity, ParityCase
from convsurgeon.report.bundle import Bundle, MobileVerdict, ProviderVerdict
from convsurgeon.timing.benchmark import Bench
from convsurgeon.timing.comparison import ComparedFile, Comparison
from convsurgeon.timing.machine import Machine
from convsurgeon.timing.memory import PeakMemory
from convsurgeon.timing.node_macs import FileMacs
from convsurgeon.timing.node_profile import NodeShare, Profile


def timing(threads: int = 1, level: Any = "all", evil: str = "", base_ms: float = 2.0, **speedups: float) -> Comparison:
    """One setting; a speed-up below 0.99 is slower, one above 1.01 faster."""
    rows = []
    for name, speedup in {"original": 1.0, **speedups}.items():
        told = "faster" if speedup > 1.01 else "slower" if speedup < 0.99 else "no measurable difference"
        word = "baseline" if name == "original" else told
        file, ms = f"{name.replace('_', '-')}.onnx", base_ms / speedup
        interval = (speedup - 0.1, speedup + 0.1) if name != "original" else (1.0, 1.0)
        rows.append(ComparedFile(file, file, 2_000_000, ms, 1.5 * ms, ms, 5.0, 4.0, speedup, interval, word))
    machine = Machine(cpu=evil, cores=2, isa=(evil,), system="s", python="3", onnx="1", onnxruntime="1", load=0.1)
    return Comparison(tuple(rows), 1.02, 1.0, 50, threads, level, 1, machine, (evil,) if evil else ())


def make_bundle(
    *timings: Comparison,
    names: Sequence[str] = ("a",),
    top1: float | None = 0.5,
    sqnr_db: float = 20.0,
    blocking: Sequence[str] = (),
    dynamic: Sequence[str] = (),
    recommended: Any = None,
    size_bytes: int = 1_000_000,
    dense_int8: bool = False,
) -> Bundle:
    """A bundle with three files, or four."""
    parity = Parity((ParityCase("example", True, 1e-7, float("inf"), True),), 1e-4, 80.0)
    files = [
        OnnxFile(Path(name), size, 18, 10, (("x", (1, 3, 8, 8)),), (("y", (1, 10)),), parity)
        for name, size in (("original.onnx", 4_000_000), ("model.onnx", size_bytes))
    ]
    layers = (LayerError(names[0], 20.0, 0.1, True), LayerError(names[-1], 20.0, 0.1, False))
    int8 = Quantized(Path("model-int8.onnx"), 500_000, "int8", 20.0, 1.0, layers)
    dense = Quantized(Path("original-int8.onnx"), 2_000_000, "int8", 20.0, 1.0, layers)
    provider = ProviderVerdict("NNAPI", "no" if blocking else "yes", 9, 5, 2, tuple(blocking))
    return Bundle(
        folder=Path(),
        original=files[0],
        converted=files[1],
        quantized=(dense, int8) if dense_int8 else (int8,),
        agreement=(
            Agreement("model.onnx", sqnr_db, top1, 8, 0.01),
            Agreement("model-int8.onnx", float("inf"), None, 8, 0.0),
        ),
        agreement_on="8 held-out images",
        mobile={"model.onnx": MobileVerdict((provider,), tuple(dynamic))},
        preparation=Preparation(),
        bench=_bench(timings, names) if timings else None,
        recommended=recommended,
        sha256={"model.onnx": "ab" * 32},
    )


def _bench(timings: Sequence[Comparison], names: Sequence[str]) -> Bench:
    count = len(timings[0].rows)
    profile = Profile(tuple(NodeShare(name, "Conv", 0.5, 0.1, False) for name in names), 1, "all")
    work = FileMacs({"a": 5}, ())
    return Bench(tuple(timings), (work,) * count, (profile,) * count, (PeakMemory(9 * 10**6, 10**6),) * count)
