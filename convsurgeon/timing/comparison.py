"""Which of several ONNX files is faster on this machine, said no more firmly than the machine allows.

    timing = compare("before.onnx", "after.onnx")
    timing.speedup, timing.interval, timing.verdict      # 2.31, (2.27, 2.36), "faster"

How the samples are taken stands in `sampling.py`, how they become a word in `verdict.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from convsurgeon.base.errors import LatencyError
from convsurgeon.onnx.session import checked, file_bytes, labels
from convsurgeon.onnxnet.session import Level
from convsurgeon.timing.interleaved import Clocked, Setup, clock
from convsurgeon.timing.machine import Machine, machine
from convsurgeon.timing.verdict import Word, check_pairs, judge


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
    """The ratio that the baseline showed against itself, 1.01 at least; 1.02 means 2 %."""
    drift: float
    """Time of the baseline in the last block over that in the first."""
    pairs: int
    threads: int
    level: Level
    batch: int
    machine: Machine
    notes: tuple[str, ...]

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

    def moved_to(self, folder: Path) -> Comparison:
        """The same after somebody moved the files."""
        return replace(self, rows=tuple(replace(row, path=str(folder / row.name)) for row in self.rows))

    def conditions(self) -> tuple[str, ...]:
        """How it was measured, in lines: rounds, setting, noise, drift, machine, and what to hold against it."""
        how = (
            f"{self.pairs} interleaved rounds, threads {self.threads}, level {self.level}, batch {self.batch}; "
            f"noise floor {self.noise:.3f} (the baseline against itself), drift {self.drift:.3f}"
        )
        return (how, str(self.machine), *self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows = [{**asdict(row), "interval": list(row.interval)} for row in self.rows]
        head = {"speedup": self.speedup, "interval": list(self.interval), "verdict": self.verdict}
        how = {"pairs": self.pairs, "threads": self.threads, "level": self.level, "batch": self.batch}
        tail = {"noise": self.noise, "drift": self.drift, "machine": self.machine.to_dict(), "notes": list(self.notes)}
        return {**head, "rows": rows, **how, **tail}

    def __str__(self) -> str:
        headers = ("file", "MB", "p50 ms", "p90 ms", "best ms", "create ms", "first ms", "speed-up", "95 %", "verdict")
        table = tabulate([_cells(row) for row in self.rows], headers=headers, disable_numparse=True, stralign="right")
        return "\n".join((table, *self.conditions()))


def compare(
    *paths: str | Path,
    pairs: int = 100,
    threads: int = 1,
    warmup: int = 5,
    seed: int = 0,
    level: Level = "all",
    batch: int = 1,
    sizes: Mapping[str, int] | None = None,
    progress: bool = True,
) -> Comparison:
    """Times ONNX files against the first of them, in interleaved rounds on the CPU.

    Args:
        paths: Two or more files. They may be any ONNX models; the same file twice is a check of the machine.
        pairs: Rounds; at least 50, rounded up to a multiple of five, as sessions are made anew five times.
        threads: Of the runtime, within an operator.
        warmup: Untimed runs of every new session after its first.
        seed: Of the inputs and the bootstrap.
        level: The runtime's graph optimisations: all, extended, basic or off.
        batch: For a symbolic first dimension.
        sizes: For other symbolic dimensions, by name; 64 for those not named.
        progress: Whether a bar appears when it takes longer than two seconds.

    Raises:
        LatencyError: Fewer than two files, fewer than 50 pairs, or a file that cannot be run.
    """
    files = [Path(path) for path in paths]
    if len(files) < 2:
        raise LatencyError("compare: needs two files or more, the first is the baseline; pass it twice to see noise")
    check_pairs(pairs)
    models = [checked(path) for path in files]
    found = machine()  # before the measurement raises the load itself
    setup = Setup(threads, level, seed, batch, dict(sizes or {}), warmup, progress)
    clocked = clock(files, pairs, setup)
    base, again, *others = clocked
    verdicts = [judge(base.samples, again.samples, other.samples, seed) for other in others]
    sizes_bytes = [file_bytes(path, model) for path, model in zip(files, models, strict=True)]
    named = list(zip(labels(files), files, sizes_bytes, strict=True))
    rows = [_row(*named[0], base, 1.0, (1.0, 1.0), "baseline")]
    for file, times, verdict in zip(named[1:], others, verdicts, strict=True):
        rows.append(_row(*file, times, verdict.speedup, verdict.interval, verdict.word))
    return Comparison(
        rows=tuple(rows),
        noise=verdicts[0].noise,
        drift=float(np.median(base.samples[-1]) / np.median(base.samples[0])),
        pairs=base.samples.size,
        threads=threads,
        level=level,
        batch=batch,
        machine=found,
        notes=_notes(models, found, threads),
    )


def _row(
    name: str,
    path: Path,
    size_bytes: int,
    times: Clocked,
    speedup: float,
    interval: tuple[float, float],
    word: str,
) -> ComparedFile:
    p50, p90 = np.quantile(times.runs, [0.5, 0.9])
    return ComparedFile(
        name=name,
        path=str(path),
        size_bytes=size_bytes,
        p50_ms=float(p50),
        p90_ms=float(p90),
        best_ms=float(np.median(times.samples)),
        create_ms=times.create_ms,
        first_ms=times.first_ms,
        speedup=speedup,
        interval=interval,
        verdict=word,
    )


def _notes(models: list[Any], found: Machine, threads: int) -> tuple[str, ...]:
    """What a reader should hold against the figures."""
    notes = []
    shapes = [
        [(info.type.tensor_type.elem_type, str(info.type.tensor_type.shape)) for info in m.graph.input] for m in models
    ]
    if any(shape != shapes[0] for shape in shapes):
        notes.append("note: the files take different inputs, so this is not one task done in several ways")
    if found.load + threads > found.cores:
        notes.append(
            f"note: load {found.load:.1f} on {found.cores} cores when it began; p50 and p90 hold what others took"
        )
    return tuple(notes)


def _cells(row: ComparedFile) -> tuple[str, ...]:
    times = (row.p50_ms, row.p90_ms, row.best_ms, row.create_ms, row.first_ms)
    spread = f"{row.interval[0]:.3f} to {row.interval[1]:.3f}" if row.verdict != "baseline" else ""
    return (
        row.name,
        f"{row.size_bytes / 1e6:.2f}",
        *(f"{value:.3f}" for value in times),
        f"{row.speedup:.3f}",
        spread,
        str(row.verdict),
    )
