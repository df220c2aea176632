"""All that can be said about the speed of several ONNX files, in one call.

    print(bench("a.onnx", "b.onnx", "c.onnx"))

The first setting (threads and level) is timed with all rounds and told in full: p50, p90, size, session creation, first
run, peak memory in a fresh process, MACs. The others are timed with the fewest rounds that make a verdict, because a
form that wins in one setting may lose in the next. Where the time goes is told by the runtime's own profiler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convsurgeon.base.errors import LatencyError
from convsurgeon.base.tables import Table
from convsurgeon.onnxnet.measuring.engine import CPU
from convsurgeon.onnxnet.session import Level
from convsurgeon.timing.comparison import ComparedFile, Comparison, compare
from convsurgeon.timing.machine import read_machine
from convsurgeon.timing.memory import PeakMemory, can_read_memory, peak_memory
from convsurgeon.timing.node_macs import FileMacs, count_macs
from convsurgeon.timing.node_profile import Profile, profile
from convsurgeon.timing.verdict import MIN_PAIRS

LEVELS: tuple[Level, ...] = ("all", "extended")
_SHOWN = 12


@dataclass(frozen=True)
class Bench:
    """Several files against the first, in several settings; everything is in the order of the files."""

    timings: tuple[Comparison, ...]
    """One per setting; all other figures were taken in the first."""
    work: tuple[FileMacs, ...]
    profiles: tuple[Profile, ...]
    memory: tuple[PeakMemory, ...]
    """Empty where the system does not tell."""

    @property
    def main(self) -> Comparison:
        """The timing in the first setting."""
        return self.timings[0]

    @property
    def fewer_macs(self) -> tuple[float | None, ...]:
        """MACs of the first file over those of each: what the speed-up would be if MACs were all; None if unknown."""
        first = self.work[0]
        return tuple(
            first.macs / one.macs if one.macs and not one.uncounted and not first.uncounted else None
            for one in self.work
        )

    def moved_to(self, folder: Path) -> Bench:
        """Return the same figures of the files in another folder."""
        return replace(self, timings=tuple(timing.moved_to(folder) for timing in self.timings))

    def without(self, name: str) -> Bench:
        """Return the figures without those of one file, which is not the first."""
        kept = [number for number, row in enumerate(self.main.rows) if row.name != name]
        return Bench(
            tuple(replace(timing, rows=tuple(timing.rows[number] for number in kept)) for timing in self.timings),
            tuple(self.work[number] for number in kept),
            tuple(self.profiles[number] for number in kept),
            tuple(self.memory[number] for number in kept if self.memory),
        )

    def owners(self) -> dict[str, tuple[float, ...]]:
        """Return milliseconds per module and file; a module is a node of the first file."""
        names = [node.name for node in self.profiles[0].nodes if not node.inserted]
        parts = [profile.by_owner(names) for profile in self.profiles]
        every = dict.fromkeys(name for part in parts for name in part)
        return {name: tuple(part.get(name, 0.0) for part in parts) for name in every}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        memory = [vars(one) for one in self.memory] or [{"peak_bytes": None, "idle_bytes": None}] * len(self.work)
        files = [
            {"name": row.name, "macs": work.macs, "uncounted": work.uncounted, **peak, "profile": profile.to_dict()}
            for row, work, profile, peak in zip(self.main.rows, self.work, self.profiles, memory, strict=True)
        ]
        return {"timings": [timing.to_dict() for timing in self.timings], "files": files}

    @property
    def files(self) -> Table:
        """How long every file takes in the first setting."""
        columns = (
            *(("file", "text"), ("best_ms", "ms"), ("p50_ms", "ms"), ("p90_ms", "ms")),
            *(("speed_up", "ratio"), ("95 %", "interval"), ("verdict", "text")),
        )
        rows = []
        for row in self.main.rows:
            interval = row.interval if row.verdict != "baseline" else None
            rows.append((row.name, row.best_ms, row.p50_ms, row.p90_ms, row.speedup, interval, str(row.verdict)))
        return Table(f"Latency, {self.main.engine}, optimisation level {self.main.level}", columns, tuple(rows))

    @property
    def sizes(self) -> Table:
        """What else every file costs."""
        columns = (
            *(("file", "text"), ("MB", "megabytes"), ("macs", "count"), ("fewer_macs", "times")),
            *(("peak_MB", "megabytes"), ("create_ms", "ms"), ("first_ms", "ms")),
        )
        memory: Sequence[PeakMemory | None] = self.memory or [None] * len(self.work)
        rows = []
        for row, work, ratio, peak in zip(self.main.rows, self.work, self.fewer_macs, memory, strict=True):
            peak_bytes = peak.peak_bytes if peak else None
            rows.append((row.name, row.size_bytes, work.macs, ratio, peak_bytes, row.create_ms, row.first_ms))
        return Table("Size, memory and start", columns, tuple(rows))

    @property
    def settings(self) -> Table:
        """The speed-up of every file in every setting; empty where there is one setting only."""
        first, *others = [row.name for row in self.main.rows]
        columns = (("threads", "count"), ("level", "text"), (f"{first} ms", "ms"))
        speedups = [(f"{name} speed-up", "text") for name in others]
        rows = [
            (timing.threads, timing.level, timing.rows[0].best_ms, *map(_short, timing.rows[1:]))
            for timing in self.timings
        ]
        return Table("Latency in other settings", (*columns, *speedups), tuple(rows) if len(rows) > 1 else ())

    @property
    def shares(self) -> Table:
        """Time per module and file, those with the largest share in any file first."""
        totals = [profile.total_ms or 1.0 for profile in self.profiles]
        times = sorted(
            self.owners().items(), key=lambda item: -max(ms / total for ms, total in zip(item[1], totals, strict=True))
        )
        if times[_SHOWN:]:
            rest = tuple(sum(values) for values in zip(*(ms for _, ms in times[_SHOWN:]), strict=True))
            times = [*times[:_SHOWN], (f"{len(times) - _SHOWN} more", rest)]
        rows = []
        for name, values in times:
            pairs = zip(values, totals, strict=True)
            rows.append((name, *(f"{1e3 * ms:,.1f} ({ms / total:.0%})" if ms else None for ms, total in pairs)))
        columns = [(f"{row.name}, us", "text") for row in self.main.rows]
        return Table("Where the time goes, by the runtime's profiler", (("module", "text"), *columns), tuple(rows))

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables with rows."""
        return tuple(table for table in (self.files, self.sizes, self.settings, self.shares) if table.rows)

    def __str__(self) -> str:
        first, *others = (table.text() for table in self.tables)
        return "\n\n".join(("\n".join((first, *self.main.conditions())), *others))


def bench(
    *paths: str | Path,
    pairs: int = 100,
    threads: Sequence[int] = (),
    levels: Sequence[Level] = LEVELS,
    provider: str = CPU,
    options: Mapping[str, object] | None = None,
    batch: int = 1,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Bench:
    """Time, count and profile ONNX files, the first of which is the baseline.

    Args:
        paths: Two files or more, of any origin.
        pairs: Interleaved rounds in the first setting; the others take 50.
        threads: Of the runtime; 1 and the number of cores if not given.
        levels: Of the runtime's graph optimisations. Every thread count is tried with every level.
        provider: Execution provider of onnxruntime, or "openvino" for OpenVINO without it.
        options: Of the provider or the session, by the runtime's own names.
        batch: For a symbolic first dimension.
        sizes: For other symbolic dimensions, by name; 64 for those not named.
        seed: Of the inputs.
        progress: Whether bars appear.

    Raises:
        LatencyError: Fewer than two files, a setting out of range, or a file that cannot be run.
    """
    counts = dict.fromkeys(threads) or dict.fromkeys((1, read_machine().cores))
    settings: list[dict[str, Any]] = [
        {"threads": count, "level": level, "provider": provider, "options": options, "batch": batch, "sizes": sizes}
        for count in counts
        for level in dict.fromkeys(levels)
    ]
    if not settings:
        raise LatencyError("levels: the list is empty; pass at least one, for example 'all'")
    main, *others = settings
    timings = [compare(*paths, pairs=pairs, **main, seed=seed, progress=progress)]
    timings += [compare(*paths, pairs=MIN_PAIRS, **other, seed=seed, progress=progress) for other in others]
    return Bench(
        tuple(timings),
        tuple(count_macs(path, batch=batch, sizes=sizes) for path in paths),
        tuple(profile(path, **main) for path in paths),
        tuple(peak_memory(path, **main) for path in paths) if can_read_memory() else (),
    )


def _short(row: ComparedFile) -> str:
    return f"{row.speedup:.2f} {'no difference' if row.verdict.startswith('no') else row.verdict}"
