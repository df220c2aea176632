"""Everything there is to say about the speed of several ONNX files, in one go.

    print(bench("a.onnx", "b.onnx", "c.onnx"))

The first setting (threads and level) is timed with all rounds and told in full: p50, p90, size, session creation, first
run, peak memory in a fresh process, MACs. The others are timed with the fewest rounds that make a verdict, because a
form that wins in one setting may lose in the next. Where the time goes is told by the runtime's own profiler.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convsurgeon.base.errors import LatencyError
from convsurgeon.base.tables import Table
from convsurgeon.onnxnet.session import Level
from convsurgeon.timing.comparison import ComparedFile, Comparison, compare
from convsurgeon.timing.memory import PeakMemory, peak_memory, readable
from convsurgeon.timing.node_macs import Work, work_of
from convsurgeon.timing.node_profile import Profile, profile
from convsurgeon.timing.verdict import MIN_PAIRS

LEVELS: tuple[Level, ...] = ("all", "extended")
_SHOWN = 12


@dataclass(frozen=True)
class Bench:
    """Several files against the first, in several settings; everything is in the order of the files."""

    timings: tuple[Comparison, ...]
    """One per setting; the first is the one that all other figures were taken in."""
    work: tuple[Work, ...]
    profiles: tuple[Profile, ...]
    memory: tuple[PeakMemory, ...]
    """Empty where the system does not tell."""

    @property
    def main(self) -> Comparison:
        """The timing in the first setting."""
        return self.timings[0]

    @property
    def fewer_macs(self) -> tuple[float, ...]:
        """MACs of the first file over those of each: what the speed-up would be if MACs were all; nan if unknown."""
        first = self.work[0]
        whole = [not one.uncounted and not first.uncounted and one.macs > 0 for one in self.work]
        return tuple(
            first.macs / one.macs if known else float("nan") for one, known in zip(self.work, whole, strict=True)
        )

    def moved_to(self, folder: Path) -> Bench:
        """The same after somebody moved the files."""
        return dataclasses.replace(self, timings=tuple(timing.moved_to(folder) for timing in self.timings))

    def without(self, name: str) -> Bench:
        """The same had one of the files not been there; not the first."""
        kept = [number for number, row in enumerate(self.main.rows) if row.name != name]
        timings = tuple(
            dataclasses.replace(timing, rows=tuple(timing.rows[number] for number in kept)) for timing in self.timings
        )
        parts = (
            tuple(part[number] for number in kept) if part else () for part in (self.work, self.profiles, self.memory)
        )
        return Bench(timings, *parts)  # type: ignore[arg-type]

    def owners(self, known: Sequence[str] = ()) -> dict[str, tuple[float, ...]]:
        """Milliseconds per module and file; a module is a node of the first file, or one of the names in `known`."""
        names = known or [node.name for node in self.profiles[0].nodes if not node.inserted]
        parts = [profile.by_owner(names) for profile in self.profiles]
        every = dict.fromkeys(name for part in parts for name in part)
        return {name: tuple(part.get(name, 0.0) for part in parts) for name in every}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        files = [
            {
                "name": row.name,
                "macs": work.macs,
                "uncounted": list(work.uncounted),
                "peak_bytes": memory.peak_bytes if memory else None,
                "idle_bytes": memory.idle_bytes if memory else None,
                "profile": profile.to_dict(),
            }
            for row, work, profile, memory in zip(
                self.main.rows, self.work, self.profiles, self.memory or [None] * len(self.work), strict=True
            )
        ]
        return {"timings": [timing.to_dict() for timing in self.timings], "files": files}

    @property
    def files(self) -> Table:
        """Every file in the first setting."""
        columns = (
            *(("file", "text"), ("MB", "megabytes"), ("p50_ms", "ms"), ("p90_ms", "ms"), ("create_ms", "ms")),
            *(("first_ms", "ms"), ("peak_MB", "megabytes"), ("macs", "count"), ("fewer_macs", "times")),
            *(("speed_up", "ratio"), ("95 %", "interval"), ("verdict", "text")),
        )
        memory: list[int | None] = [one.peak_bytes for one in self.memory] or [None] * len(self.work)
        fewer = [ratio if ratio == ratio else None for ratio in self.fewer_macs]
        rows = tuple(
            (*_times(row), peak, work.macs, ratio, *_judged(row))
            for row, work, ratio, peak in zip(self.main.rows, self.work, fewer, memory, strict=True)
        )
        return Table(f"Latency, {_setting(self.main)}", columns, rows)

    @property
    def settings(self) -> Table:
        """The speed-up of every file in every setting; empty where there is one only."""
        names = [row.name for row in self.main.rows]
        columns = (("threads", "count"), ("level", "text"), (f"{names[0]} ms", "ms"))
        speedups = [(f"{name} speed-up", "text") for name in names[1:]]
        rows = [
            (timing.threads, timing.level, timing.rows[0].p50_ms, *map(_short, timing.rows[1:]))
            for timing in self.timings
        ]
        return Table("Latency in other settings", (*columns, *speedups), tuple(rows) if len(rows) > 1 else ())

    @property
    def shares(self) -> Table:
        """Time per module and file, those with the largest share in any file first."""
        totals = [profile.total_ms or 1.0 for profile in self.profiles]
        owners = self.owners()

        def largest(name: str) -> float:
            return max(ms / total for ms, total in zip(owners[name], totals, strict=True))

        order = sorted(owners, key=largest, reverse=True)
        rows = [(name, *_shared(owners[name], totals)) for name in order[:_SHOWN]]
        if order[_SHOWN:]:
            rest = [sum(owners[name][index] for name in order[_SHOWN:]) for index in range(len(totals))]
            rows.append((f"{len(order) - _SHOWN} more", *_shared(rest, totals)))
        columns = [(f"{row.name}, us", "text") for row in self.main.rows]
        return Table("Where the time goes, by the runtime's profiler", (("module", "text"), *columns), tuple(rows))

    @property
    def tables(self) -> tuple[Table, ...]:
        """All that hold something."""
        return tuple(table for table in (self.files, self.settings, self.shares) if table.rows)

    def __str__(self) -> str:
        first, *others = (table.text() for table in self.tables)
        return "\n\n".join(("\n".join((first, *self.main.conditions())), *others))


def bench(
    *paths: str | Path,
    pairs: int = 100,
    threads: Sequence[int] = (),
    levels: Sequence[Level] = LEVELS,
    seed: int = 0,
    batch: int = 1,
    sizes: Mapping[str, int] | None = None,
    progress: bool = True,
) -> Bench:
    """Times, counts and profiles ONNX files, the first of which is the baseline.

    Args:
        paths: Two files or more, of any origin.
        pairs: Interleaved rounds in the first setting; the others take 50.
        threads: Of the runtime; 1 and the number of cores if not given.
        levels: Of the runtime's graph optimisations. Every thread count is tried with every level.
        seed: Of the inputs and the bootstrap.
        batch: For a symbolic first dimension.
        sizes: For other symbolic dimensions, by name; 64 for those not named.
        progress: Whether bars appear.

    Raises:
        LatencyError: Fewer than two files, a setting out of range, or a file that cannot be run.
    """
    counts = tuple(dict.fromkeys(threads)) or all_threads()
    settings = [(count, level) for count in counts for level in dict.fromkeys(levels)]
    if not settings:
        raise LatencyError("levels: the list is empty; pass at least one, for example 'all'")
    timings = [
        compare(
            *paths,
            pairs=pairs if index == 0 else MIN_PAIRS,
            threads=count,
            level=level,
            seed=seed,
            batch=batch,
            sizes=sizes,
            progress=progress,
        )
        for index, (count, level) in enumerate(settings)
    ]
    how: dict[str, Any] = {"threads": settings[0][0], "level": settings[0][1], "batch": batch, "sizes": sizes}
    return Bench(
        tuple(timings),
        tuple(work_of(path, batch=batch, sizes=sizes) for path in paths),
        tuple(profile(path, **how) for path in paths),
        tuple(peak_memory(path, **how) for path in paths) if readable() else (),
    )


def all_threads() -> tuple[int, ...]:
    """One, and as many as this process has cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return tuple(dict.fromkeys((1, cores)))


def _setting(timing: Comparison) -> str:
    return f"{timing.threads} thread{'s' if timing.threads > 1 else ''}, optimisation level {timing.level}"


def _times(row: ComparedFile) -> tuple[Any, ...]:
    return row.name, row.size_bytes, row.p50_ms, row.p90_ms, row.create_ms, row.first_ms


def _judged(row: ComparedFile) -> tuple[Any, ...]:
    return row.speedup, row.interval if row.verdict != "baseline" else None, str(row.verdict)


def _short(row: ComparedFile) -> str:
    return f"{row.speedup:.2f} {'no difference' if row.verdict.startswith('no') else row.verdict}"


def _shared(times: Sequence[float], totals: Sequence[float]) -> list[str | None]:
    return [f"{1e3 * ms:,.1f} ({ms / total:.0%})" if ms else None for ms, total in zip(times, totals, strict=True)]
