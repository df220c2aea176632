"""What a report's page draws: positions in percent and words, under the names that its template reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convsurgeon.planning.inspection import Curves
from convsurgeon.planning.plan import Change, Skip
from convsurgeon.report.bundle import CONVERTED, ORIGINAL, Bundle
from convsurgeon.report.report import Report
from convsurgeon.report.sentence import count_threads
from convsurgeon.timing.benchmark import Bench
from convsurgeon.timing.comparison import ComparedFile, Comparison

_TOP_DB = 60.0
"""Outputs this near are drawn as equal."""
_WIDTH, _HEIGHT = 104.0, 34.0
"""Of an energy curve, in pixels."""

Card = tuple[str, str, str]
"""A figure, what it is, and a note."""
Drawn = dict[str, Any]
LayerRow = tuple[Change | Skip, Sequence[float | None], float | None, Sequence[Drawn]]
"""A conv, its microseconds before and after, its fit error, its energy curves."""


def draw_cards(report: Report, bundle: Bundle | None) -> list[Card]:
    """Return the figures at the top: what, how much, in words."""
    found = []
    best = None if bundle is None else bundle.recommended
    if best is not None:
        found.append((best.name, "to ship", "see README.md for how to run it"))
        if best.name != ORIGINAL:
            low, high = best.interval
            where = f"95 %: {low:.2f} to {high:.2f}, {count_threads(best.threads)}, level {best.level}"
            found.append((f"{best.speedup:.2f}×", "as fast as the original", where))
    costs = (("MACs", report.before.macs, report.after.macs), ("parameters", report.before.params, report.after.params))
    for name, was, now in costs:
        found.append((f"{was / now:.1f}×" if now else "all", f"fewer {name}", f"{_si(was)} to {_si(now)}"))
    for metric, before, after in report.metrics:
        shown = after if best is None or bundle is None else bundle.values.get(best.name, after)
        found.append((f"{shown:.4g}", metric, f"{before:.4g} before"))
    if bundle is not None and (near := bundle.near.get(CONVERTED)):
        found.append(_near_card(near.sqnr_db, near.top1, bundle.agreement_on))
    elif report.fidelity is not None:
        found.append(_near_card(report.fidelity.sqnr_db, report.fidelity.agreement, "the example"))
    return found


def _near_card(sqnr_db: float, top1: float | None, where: str) -> Card:
    noise = "identical" if sqnr_db == math.inf else f"{sqnr_db:.1f} dB"
    if top1 is None:
        return (noise, "SQNR to the original", where)
    return (f"{100 * top1:.1f} %", "same top-1", f"{where}; SQNR {noise}")


def draw_bars(report: Report, bundle: Bundle | None) -> list[Drawn]:
    """Return before and after as pairs of bars, in percent of the longer one."""
    before, after = report.before, report.after
    found = [
        _bars("multiply-accumulates", before.macs, after.macs, _si),
        _bars("parameters", before.params, after.params, _si),
        _bars("peak activation", before.peak_activation_bytes, after.peak_activation_bytes, _bytes),
    ]
    if bundle is None:
        return found
    found.append(_bars("ONNX file", bundle.sizes[ORIGINAL], bundle.sizes[CONVERTED], _bytes))
    if bundle.bench is not None and bundle.rewritten:
        was, now, *_ = bundle.bench.main.rows
        label = f"one run, {_setting(bundle.bench.main)}"
        found.append(_bars(label, was.p50_ms, now.p50_ms, lambda value: f"{value:.3g} ms"))
        if bundle.bench.memory:
            before_bytes, after_bytes = (one.peak_bytes for one in bundle.bench.memory[:2])
            found.append(_bars("peak memory of a process", before_bytes, after_bytes, _bytes))
    return found


def _bars(name: str, before: float, after: float, words: Callable[[float], str]) -> Drawn:
    longest = max(before, after) or 1
    ratio = f"{after / before:.2f}" if before else ""
    widths = (100 * before / longest, 100 * after / longest)
    return {"name": name, "ratio": ratio, "widths": widths, "texts": (words(before), words(after))}


def draw_tradeoff(bundle: Bundle) -> Drawn:
    """Return every file as a point: time (or size) to the right, nearness to the original upwards."""
    across = {name: row.p50_ms for name, row in bundle.rows.items()}
    across = across or {name: size / 1e6 for name, size in bundle.sizes.items()}
    far = 1.12 * max(across.values())
    points = []
    for name, value in sorted(across.items(), key=lambda item: item[1]):
        kind = "before" if name.startswith("original") else "after"
        best = bundle.recommended is not None and bundle.recommended.name == name
        words = f"{_describe_point(name, bundle)}{', to ship' if best else ''}"
        kind += " best" if best else ""
        points.append(
            {"name": name, "x": 100 * value / far, "y": _place_up(name, bundle), "words": words, "kind": kind}
        )
    known = [value for value in bundle.values.values() if math.isfinite(value)]
    yticks = [(0, "same"), *((_height(value), f"{value:.0f} dB") for value in (0, 20, 40))]
    if known:  # the user's own measure says more
        yticks = [(_between(value, known), f"{value:.4g}") for value in dict.fromkeys((max(known), min(known)))]
    xticks = [(100 * tick / far, f"{tick:g}") for tick in _ticks(far)]
    unit = "ms for one run (p50)" if bundle.rows else "MB on disk"
    return {"points": points, "xticks": xticks, "yticks": yticks, "across": unit, "on": bundle.agreement_on}


def _place_up(name: str, bundle: Bundle) -> float:
    """Return percent from the top: by the user's metric where there is one, else by how near the outputs are."""
    known = [value for value in bundle.values.values() if math.isfinite(value)]
    if known:
        own = bundle.values.get(name, math.nan)
        return _between(own if math.isfinite(own) else min(known), known)
    near = bundle.near.get(name)
    return 0.0 if near is None else _height(near.sqnr_db)


def _between(value: float, known: Sequence[float]) -> float:
    """Return percent from the top, the largest of the known values at 5 and the smallest at 95."""
    low, high = min(known), max(known)
    return 5 + 90 * ((high - value) / (high - low) if high > low else 0.0)


def _describe_point(name: str, bundle: Bundle) -> str:
    words = [f"{bundle.rows[name].speedup:.2f}×"] if name in bundle.rows else []
    words.append(f"{bundle.sizes[name] / 1e6:.2f} MB")
    words += [f"metric {bundle.values[name]:.4g}"] if name in bundle.values else []
    if near := bundle.near.get(name):
        words.append("identical outputs" if near.sqnr_db == math.inf else f"{near.sqnr_db:.1f} dB")
        words += [f"same top-1 on {100 * near.top1:.1f} %"] if near.top1 is not None else []
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
            "name": _setting(timing),
            "noise": (place(1 / timing.noise), place(timing.noise)),
            "rows": [_speed_row(row, place) for row in timing.rows[1:]],
            "baseline": f"{timing.rows[0].p50_ms:.3f} ms",
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


def _setting(timing: Comparison) -> str:
    return f"{count_threads(timing.threads)}, level {timing.level}"


def _si(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _bytes(value: float) -> str:
    return f"{value / 1e6:.3g} MB" if value >= 1e6 else f"{value / 1e3:.3g} kB"
