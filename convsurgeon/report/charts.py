"""What a report's page draws: positions in percent and words, under the names that its template reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convsurgeon.planning.inspection import Curves
from convsurgeon.planning.plan import Change, Skip
from convsurgeon.report.bundle import CONVERTED, Bundle
from convsurgeon.report.report import Report
from convsurgeon.report.sentence import main_setting, name_setting
from convsurgeon.timing.benchmark import Bench
from convsurgeon.timing.comparison import ComparedFile, Comparison

_TOP_DB = 60.0
"""Outputs this near are drawn as equal."""
_WIDTH, _HEIGHT = 104.0, 34.0
"""Of an energy curve, in pixels."""

Drawn = dict[str, Any]
LayerRow = tuple[Change | Skip, Sequence[float | None], float | None, Sequence[Drawn]]
"""A conv, its microseconds before and after, its fit error, its energy curves."""


def draw_tradeoff(bundle: Bundle) -> Drawn:
    """Return every file as a point: time (or size) to the right, the metric or nearness to the original upwards."""
    timed = bundle.bench is not None
    across = {row.name: row.best_ms for row in main_setting(bundle).rows} if timed else {}
    across = across or {name: size / 1e6 for name, size in bundle.sizes.items()}
    far = 1.12 * max(across.values())
    up = _Upwards(bundle)
    points = []
    for name, value in sorted(across.items(), key=lambda item: item[1]):
        best = bundle.recommended is not None and bundle.recommended.name == name
        kind = f"{'before' if name.startswith('original') else 'after'}{' best' if best else ''}"
        words = f"{_describe_point(name, bundle)}{', to ship' if best else ''}"
        y, reach = up.place(name)
        points.append({"name": name, "x": 100 * value / far, "y": y, "reach": reach, "words": words, "kind": kind})
    xticks = [(100 * tick / far, f"{tick:g}") for tick in _ticks(far)]
    unit = f"milliseconds for one run, {name_setting(main_setting(bundle))}" if timed else "MB on disk"
    return {"points": points, "xticks": xticks, "yticks": up.ticks(), "across": unit, "on": bundle.agreement_on}


class _Upwards:
    """The axis upwards: the user's metric where there is one, else how near outputs are; in percent from the top."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        ends = [
            value + sign * bundle.doubts.get(name, 0.0)
            for name, value in bundle.values.items()
            if math.isfinite(value)
            for sign in (-1, 1)
        ]
        self.low, self.high = min(ends, default=0.0), max(ends, default=0.0)

    def place(self, name: str) -> tuple[float, float]:
        """Return where a file stands, and how far one standard error reaches to both sides."""
        if not self.bundle.values:
            near = self.bundle.near.get(name)
            return (0.0 if near is None else _height(near.sqnr_db)), 0.0
        own = self.bundle.values.get(name, math.nan)
        reach = 90 * self.bundle.doubts.get(name, 0.0) / (self.high - self.low) if self.high > self.low else 0.0
        return self._between(own if math.isfinite(own) else self.low), reach

    def ticks(self) -> list[tuple[float, str]]:
        if not self.bundle.values:
            return [(0, "same"), *((_height(value), f"{value:.0f} dB") for value in (0, 20, 40))]
        return [(self._between(value), f"{value:.4g}") for value in dict.fromkeys((self.high, self.low))]

    def _between(self, value: float) -> float:
        share = (self.high - value) / (self.high - self.low) if self.high > self.low else 0.5
        return 5 + 90 * share


def _describe_point(name: str, bundle: Bundle) -> str:
    rows = {} if bundle.bench is None else {row.name: row for row in main_setting(bundle).rows}
    words = [f"{rows[name].speedup:.2f}×"] if name in rows else []
    words.append(f"{bundle.sizes[name] / 1e6:.2f} MB")
    if name in bundle.values:
        doubt = bundle.doubts.get(name)
        return ", ".join([*words, f"metric {bundle.values[name]:.4g}{f' ± {doubt:.2g}' if doubt else ''}"])
    if near := bundle.near.get(name):
        words.append("identical outputs" if near.sqnr_db == math.inf else f"SQNR {near.sqnr_db:.1f} dB")
        words += [f"{100 * near.top1:.1f} % of decisions stay"] if near.top1 is not None else []
    return ", ".join(words)


def draw_layers(report: Report, curves: Curves, bench: Bench | None) -> list[LayerRow]:
    """Return one row per conv, with its energy curves, its fit error and, where it was profiled, its time."""
    names = [step.name for step in report.steps]
    second = None if bench is None else bench.main.rows[1].name
    times = [] if bench is None or second != CONVERTED else [profile.by_owner(names) for profile in bench.profiles[:2]]
    fits = {} if report.reconstruction is None else {site.name: site.after for site in report.reconstruction.sites}
    rows: list[LayerRow] = []
    for step in report.steps:
        us = [1e3 * one[step.name] if step.name in one else None for one in times or [{}] * 2 * (bench is not None)]
        drawn = [_curve(word, kept, step) for word, kept in curves.get(step.name, {}).items()]
        rows.append((step, us, fits.get(step.name), drawn))
    return rows


def _curve(word: str, kept: Sequence[float], change: Change | Skip) -> Drawn:
    """Return the energy that each rank keeps as a polyline, with a dot at the rank that was chosen."""
    step = (_WIDTH - 12) / max(len(kept) - 1, 1)
    points = [(6 + index * step, 4 + (1 - value) * (_HEIGHT - 8)) for index, value in enumerate(kept)]
    chosen = change.rank - 1 if isinstance(change, Change) and change.form.label.startswith(f"{word} ") else -1
    words = ", ".join(f"rank {rank} {100 * value:.0f} %" for rank, value in enumerate(kept, 1))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = [points[chosen]] if 0 <= chosen < len(points) else []
    return {"word": word, "line": line, "dots": dots, "words": f"{word}: {words}"}


def group_skips(report: Report) -> Mapping[str, list[str]]:
    """Return the convs that were left as they were, by reason."""
    reasons: dict[str, list[str]] = {}
    for step in report.steps:
        if isinstance(step, Skip):
            reasons.setdefault(step.reason, []).append(step.name)
    return reasons


def draw_speeds(timings: Sequence[Comparison]) -> Drawn:
    """Return speed-ups with their intervals on a logarithmic axis, setting by setting."""
    ends = [end for timing in timings for row in timing.rows for end in row.interval]
    low, high = min(0.8, *ends) / 1.05, max(1.25, *ends) * 1.05

    def place(value: float) -> float:
        return 100 * math.log(value / low) / math.log(high / low)

    settings = [
        {
            "name": name_setting(timing),
            "noise": (place(1 / timing.noise), place(timing.noise)),
            "rows": [_speed_row(row, place) for row in timing.rows[1:]],
            "baseline": f"{timing.rows[0].best_ms:.3g} ms",
        }
        for timing in timings
    ]
    narrow, wide = (0.5, 0.8, 1, 1.5, 2, 3, 5, 8), (0.1, 0.5, 1, 2, 5, 10, 50, 100)
    ticks = [(place(tick), f"{tick:g}×") for tick in (wide if high / low > 10 else narrow) if low <= tick <= high]
    return {"one": place(1.0), "ticks": ticks, "settings": settings}


def _speed_row(row: ComparedFile, place: Callable[[float], float]) -> Drawn:
    low, high = row.interval
    return {
        "name": row.name,
        "verdict": row.verdict,
        "kind": {"faster": "good", "slower": "bad"}.get(row.verdict, "even"),
        "words": f"{row.speedup:.2f}× ({low:.2f} to {high:.2f})",
        "left": place(low),
        "width": place(high) - place(low),
        "dot": place(row.speedup),
    }


def _height(sqnr_db: float) -> float:
    """Return percent from the top: 0 where outputs are equal, 100 at 0 dB."""
    if math.isnan(sqnr_db):
        return 100.0
    return 100 * (1 - min(max(sqnr_db, 0.0), _TOP_DB) / _TOP_DB)


def _ticks(far: float) -> list[float]:
    """Return four or five round numbers from zero."""
    step = 10 ** math.floor(math.log10(far))
    step = next(part * step for part in (0.1, 0.2, 0.25, 0.5, 1, 2) if far / (part * step) <= 5.5)
    return [round(index * step, 10) for index in range(int(far / step) + 1)]
