"""Which of several ONNX files is faster on this machine, as firmly as the machine allows.

timing = compare("before.onnx", "after.onnx")
timing.speedup, timing.interval, timing.verdict      # 2.31, (2.27, 2.36), "faster"
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import ModelProto

from convsurgeon.base.errors import LatencyError, expect
from convsurgeon.base.tables import Table
from convsurgeon.onnx.files import file_bytes, labels, load_checked
from convsurgeon.onnxnet.measuring.engine import CPU, Engine
from convsurgeon.onnxnet.session import Level
from convsurgeon.timing.interleaved import RunTimes, time_interleaved
from convsurgeon.timing.machine import Machine, read_machine
from convsurgeon.timing.verdict import Word, check_pairs, judge

SLOWED = 1.5
"""Times as long with subnormal numbers from which on a file is said to be slowed by them."""


@dataclass(frozen=True)
class ComparedFile:
    """One file against the baseline, whose own row has the speed-up 1."""

    name: str
    path: str
    size_bytes: int
    """The file and its external data."""
    p50_ms: float
    p90_ms: float
    best_ms: float
    """Median over the rounds of the fastest run in each."""
    create_ms: float
    first_ms: float
    speedup: float
    interval: tuple[float, float]
    verdict: Word | str
    """`baseline` in the first row."""


@dataclass(frozen=True)
class Comparison:
    """Latencies of several ONNX files, measured against the first one.

    `speedup`, `interval` and `verdict` are those of the second file, the usual question.
    """

    rows: tuple[ComparedFile, ...]
    noise: float
    """Ratio of the baseline against itself, 1.01 at least; 1.02 means 2 %."""
    drift: float
    """Time of the baseline in the last block over that in the first."""
    pairs: int
    threads: int
    level: Level
    batch: int
    machine: Machine
    notes: tuple[str, ...]
    provider: str = CPU
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def speedup(self) -> float:
        """Times as fast as the baseline."""
        return self.rows[1].speedup

    @property
    def interval(self) -> tuple[float, float]:
        """Where the speed-up lies with 95 % confidence."""
        return self.rows[1].interval

    @property
    def verdict(self) -> str:
        """`faster`, `slower` or `no measurable difference`."""
        return self.rows[1].verdict

    @property
    def engine(self) -> Engine:
        """How the files were run."""
        return Engine(self.threads, self.provider, dict(self.options), self.level)

    def moved_to(self, folder: Path) -> Comparison:
        """Return the same figures of the files in another folder."""
        return replace(self, rows=tuple(replace(row, path=str(folder / row.name)) for row in self.rows))

    def conditions(self) -> tuple[str, ...]:
        """Return lines on how it was measured: rounds, setting, noise, drift, machine, notes."""
        how = (
            f"{self.pairs} interleaved rounds, {self.engine}, optimisation level {self.level}, batch "
            f"{self.batch}; the baseline differs by {self.noise - 1:.1%} from itself, and took {self.drift:.3f} times "
            "as long at the end as at the beginning"
        )
        return (how, str(self.machine), *self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return {"speedup": self.speedup, "interval": list(self.interval), "verdict": self.verdict} | values

    def __str__(self) -> str:
        times = ("best_ms", "p50_ms", "p90_ms", "create_ms", "first_ms")
        columns = (("file", "text"), ("MB", "megabytes"), *((name, "ms") for name in times))
        rows = []
        for row in self.rows:
            interval = row.interval if row.verdict != "baseline" else None
            found = (getattr(row, name) for name in times)
            rows.append((row.name, row.size_bytes, *found, row.speedup, interval, str(row.verdict)))
        more = (("speed_up", "ratio"), ("95 %", "interval"), ("verdict", "text"))
        return "\n".join((Table("", (*columns, *more), tuple(rows)).text(), *self.conditions()))


def compare(
    *paths: str | Path,
    pairs: int = 100,
    threads: int = 1,
    level: Level = "all",
    provider: str = CPU,
    options: Mapping[str, object] | None = None,
    batch: int = 1,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Time ONNX files against the first of them, in interleaved rounds.

    Args:
        paths: Two or more files. They may be any ONNX models; the same file twice is a check of the machine.
        pairs: Rounds; at least 50, rounded up to a multiple of five, as sessions are made anew five times. Fewer are
            made of files so slow that they would take more than ten seconds.
        threads: Of the runtime, within an operator.
        level: The runtime's graph optimisations: all, extended, basic or off.
        provider: Execution provider of onnxruntime, or "openvino" for OpenVINO without it.
        options: Of the provider or the session, by the runtime's own names.
        batch: For a symbolic first dimension.
        sizes: For other symbolic dimensions, by name; 64 for those not named.
        seed: Of the inputs.
        progress: Whether a bar appears when it takes longer than two seconds.

    Raises:
        LatencyError: Fewer than two files, fewer than 50 pairs, or a file that cannot be run.
    """
    for path in paths:
        expect(path, (str, os.PathLike), "compare: expected paths of ONNX files", LatencyError)
    files = [Path(path) for path in paths]
    if len(files) < 2:
        raise LatencyError("compare: needs two files or more, the first is the baseline; pass it twice to see noise")
    check_pairs(pairs)
    models = [load_checked(path) for path in files]
    engine = Engine(threads, provider, options or {}, level)
    machine = read_machine()  # before the measurement raises the load itself
    base, again, *others = time_interleaved(
        files,
        pairs,
        engine=engine,
        batch=batch,
        sizes=dict(sizes or {}),
        seed=seed,
        progress=progress,
    )
    verdicts = [judge(base.samples, again.samples, other.samples) for other in others]
    judged = [(1.0, (1.0, 1.0), "baseline"), *((one.speedup, one.interval, one.word) for one in verdicts)]
    rows = []
    for path, name, model, times, words in zip(files, labels(files), models, [base, *others], judged, strict=True):
        p50, p90 = map(float, np.quantile(times.runs, [0.5, 0.9]))
        figures = (p50, p90, float(np.median(times.samples)), times.create_ms, times.first_ms)
        rows.append(ComparedFile(name, str(path), file_bytes(path, model), *figures, *words))
    return Comparison(
        rows=tuple(rows),
        noise=verdicts[0].noise,
        drift=float(np.median(base.samples[-1]) / np.median(base.samples[0])),
        pairs=base.samples.size,
        threads=threads,
        level=level,
        batch=batch,
        provider=engine.provider,
        options=engine.options,
        machine=machine,
        notes=(*_notes(models, machine, threads), *_slowed(labels(files), [base, *others])),
    )


def _slowed(names: list[str], times: list[RunTimes]) -> list[str]:
    """Return which files subnormal numbers slow down."""
    return [
        f"note: subnormal numbers (below 1.2e-38) make {name} take {one.slowed:.1f} times as long as timed here, where "
        "they count as zero; set session.set_denormal_as_zero where it runs, or zero such weights"
        for name, one in zip(names, times, strict=True)
        if one.slowed > SLOWED
    ]


def _notes(models: list[ModelProto], machine: Machine, threads: int) -> tuple[str, ...]:
    """Return what a reader should hold against the figures."""
    notes = []
    shapes = [
        [(info.type.tensor_type.elem_type, str(info.type.tensor_type.shape)) for info in model.graph.input]
        for model in models
    ]
    if any(shape != shapes[0] for shape in shapes):
        notes.append("note: the files take different inputs, so they do not do the same task")
    if machine.load + threads > machine.cores:
        notes.append(
            f"note: load {machine.load:.1f} on {machine.cores} cores when it began; "
            "the median and the 90 % hold what other programs took"
        )
    return tuple(notes)
