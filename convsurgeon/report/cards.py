"""The figures at the top of a report's page, and the bars of before and after."""

from __future__ import annotations

import math
from collections.abc import Callable

from convsurgeon.report.bundle import CONVERTED, ORIGINAL, Bundle
from convsurgeon.report.charts import Drawn
from convsurgeon.report.report import Report
from convsurgeon.report.sentence import difference, estimated_loss, main_setting, name_setting

Card = tuple[str, str, str]
"""A figure, what it is, and a note."""


def draw_cards(report: Report, bundle: Bundle | None) -> list[Card]:
    """Return the figures at the top: one speed-up, what the user looks at, size, and what converting cost."""
    found = []
    best = None if bundle is None else bundle.recommended
    if bundle is not None and best is not None and best.name != ORIGINAL:
        times = {row.name: row.best_ms for row in main_setting(bundle).rows}
        low, high = best.interval
        where = f"{times[ORIGINAL]:.3g} to {times[best.name]:.3g} ms, {name_setting(best)}"
        where += f"; between {low:.2f} and {high:.2f} with 95 %"
        found.append((f"{best.speedup:.2f}×", "as fast as the original", where))
    for metric, before, after in report.metrics:
        shown = after if bundle is None else bundle.values.get(bundle.shown, after)
        doubt = None if bundle is None else bundle.doubts.get(bundle.shown)
        sure = f"; the difference is sure to ± {doubt:.2g}, one standard error" if doubt else ""
        found.append((f"{shown:.4g}", metric, f"{before:.4g} before{sure}"))
    if not report.metrics:
        found += _near_cards(report, bundle)
    if bundle is not None:
        was_bytes, now_bytes = bundle.sizes[ORIGINAL], bundle.sizes[bundle.shown]
        found.append((_bytes(now_bytes), "on disk", f"{_bytes(was_bytes)} before"))
    if math.isfinite(report.seconds):
        tried = f", {len(report.trials)} plans tried" if report.trials else ""
        found.append(
            (_time(report.seconds), "to convert it", f"{_time(report.processor_seconds)} of processor time{tried}")
        )
    return found


def _near_cards(report: Report, bundle: Bundle | None) -> list[Card]:
    """Return how near the outputs are, where there is no metric that says it better."""
    near, found = None if bundle is None else bundle.near.get(bundle.shown), report.fidelity
    if bundle is not None and near is not None:
        sqnr_db, top1, where = near.sqnr_db, near.top1, bundle.agreement_on
    elif found is not None:
        sqnr_db, top1, where = found.sqnr_db, found.agreement, "the example"
    else:
        return []
    if top1 is not None:
        lost = estimated_loss(report) if bundle is None or bundle.shown == CONVERTED else math.nan
        right = f"; about {lost:.1%} of the right ones are lost" if math.isfinite(lost) else ""
        return [(f"{100 * top1:.1f} %", "of decisions stay", f"{where}{right}")]
    if sqnr_db == math.inf:
        return [("none", "difference of the outputs", where)]
    return [(f"{difference(sqnr_db):.2g} %", "difference of the outputs", f"SQNR {sqnr_db:.1f} dB, {where}")]


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
    found.append(_bars("ONNX file", bundle.sizes[ORIGINAL], bundle.sizes[bundle.shown], _bytes))
    if bundle.bench is not None and bundle.rewritten:
        timing = main_setting(bundle)
        times = {row.name: row.best_ms for row in timing.rows}
        label = f"one run, {name_setting(timing)}"
        found.append(_bars(label, times[ORIGINAL], times[bundle.shown], lambda value: f"{value:.3g} ms"))
        if bundle.bench.memory:
            before_bytes, after_bytes = (one.peak_bytes for one in bundle.bench.memory[:2])
            found.append(_bars("peak memory of a process", before_bytes, after_bytes, _bytes))
    return found


def _bars(name: str, before: float, after: float, words: Callable[[float], str]) -> Drawn:
    longest = max(before, after) or 1
    ratio = f"{after / before:.2f}" if before else ""
    widths = (100 * before / longest, 100 * after / longest)
    return {"name": name, "ratio": ratio, "widths": widths, "texts": (words(before), words(after))}


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _si(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _bytes(value: float) -> str:
    return f"{value / 1e6:.3g} MB" if value >= 1e6 else f"{value / 1e3:.3g} kB"
