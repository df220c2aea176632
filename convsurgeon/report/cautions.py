"""What a reader of the first sentence alone would get wrong, and what is merely good to know."""

from __future__ import annotations

from convsurgeon.report.bundle import CONVERTED, DENSE_INT8, INT8, Bundle
from convsurgeon.report.report import Report
from convsurgeon.report.sentence import count_threads, main_setting
from convsurgeon.timing.comparison import ComparedFile

_FAR_DB = 6.0
"""Below this a quarter of the output's energy is error."""


def cautions(report: Report, bundle: Bundle | None = None) -> list[str]:
    """Return what a reader of the sentence alone would get wrong."""
    found = [*report.notes, *(() if bundle is None else bundle.notes)]
    if bundle is not None and bundle.bench is not None and bundle.rewritten:
        found.append(_not_faster(bundle))
    fidelity = report.fidelity
    if fidelity is not None and fidelity.sqnr_db < _FAR_DB and report.reconstruction is None:
        found.append(
            f"The outputs are far from the original's (SQNR {fidelity.sqnr_db:.1f} dB): without calibration images low "
            "ranks destroy what a network learned. Pass some, or a higher rank."
        )
    return [text for text in found if text]


def remarks(report: Report, bundle: Bundle | None = None) -> list[str]:
    """Return what is good to know, and no reason to worry."""
    if bundle is None:
        return []
    found = [_mobile(bundle)]
    if bundle.bench is not None and bundle.rewritten:
        rows = {row.name: row for row in main_setting(bundle).rows}  # of which the headline speaks
        found = [_against_dense_int8(rows), _macs_against_speed(report, rows[CONVERTED].speedup), *found]
    return [text for text in found if text]


def _not_faster(bundle: Bundle) -> str:
    """Return the settings in which the converted file is not faster."""
    lost = []
    for timing in bundle.bench.timings if bundle.bench is not None else ():
        row = next(row for row in timing.rows if row.name == CONVERTED)
        if row.verdict != "faster":
            level = "" if timing.level == "all" else f" at optimisation level {timing.level}"
            lost.append(f"{count_threads(timing.threads)}{level} ({row.speedup:.2f})")
    return f"Not faster than the original with {', '.join(lost)}." if lost else ""


def _against_dense_int8(rows: dict[str, ComparedFile]) -> str:
    """Return whether quantising alone would have done."""
    if DENSE_INT8 not in rows:
        return ""
    dense = rows[DENSE_INT8]
    best = max((rows[name] for name in (CONVERTED, INT8) if name in rows), key=lambda row: row.speedup)
    start = f"The original in int8, with its convs as they were, is {dense.speedup:.2f} times as fast"
    if best.interval[0] <= dense.interval[1]:
        return f"{start}: here quantising alone does as well."
    return f"{start}; rewriting them gives {best.speedup:.2f}."


def _macs_against_speed(report: Report, speedup: float) -> str:
    fewer = report.before.macs / report.after.macs if report.after.macs else 1.0
    if speedup >= 0.8 * fewer:
        return ""
    return f"{fewer:.2f} times fewer MACs are {speedup:.2f} times the speed: a processor does thin convs less well."


def _mobile(bundle: Bundle) -> str:
    verdict = bundle.mobile[CONVERTED]
    if verdict.dynamic:
        return f"Mobile providers need static shapes, and {', '.join(verdict.dynamic)} has open dimensions."
    stops = []
    for one in verdict.providers:
        if one.blocking:
            more = f" and {len(one.blocking) - 1} more" if one.blocking[1:] else ""
            stops.append(f"{one.provider} stops at {one.blocking[0]}{more}")
    return f"Not every mobile provider takes model.onnx whole: {', '.join(stops)}." if stops else ""
