"""A report in one sentence, and the cautions that go with it."""

from __future__ import annotations

import math

from convsurgeon.planning.plan import Change
from convsurgeon.report.bundle import CONVERTED, DENSE_INT8, INT8, ORIGINAL, Bundle, Recommended
from convsurgeon.report.report import Report
from convsurgeon.timing.comparison import ComparedFile

_FAR_DB = 6.0
"""Below this a quarter of the output's energy is error."""


def sentence(report: Report, bundle: Bundle | None = None) -> str:
    """Return what may be wrong, the file to ship, where that was measured, and what was done, gained and lost."""
    first = _shipped(bundle.recommended) if bundle is not None and bundle.recommended is not None else ""
    warning = f"{report.warning} " if report.warning else ""
    return f"{warning}{first}{_done(report, bundle)}"


def _shipped(one: Recommended) -> str:
    where = f"with {count_threads(one.threads)} at level {one.level}"
    if one.name == ORIGINAL:
        return f"Ship original.onnx, the network as it was: no other file is faster {where} and near enough. "
    dense = one.name == DENSE_INT8
    text = f"Ship {one.name}{', the original without any surgery' if dense else ''}: "
    text += f"{one.speedup:.2f} times as fast as original.onnx {where}"
    if one.over_dense_int8 is not None and not dense:
        text += f", {one.over_dense_int8:.2f} times as fast as the quantised original"
    return f"{text}; its error is {one.lost:.2g}, allowed {one.allowed:.2g}. "


def _done(report: Report, bundle: Bundle | None) -> str:
    changes = sum(isinstance(step, Change) for step in report.steps)
    if not changes:
        why = f" {report.speed}" if report.speed else ""
        return f"None of {len(report.steps)} convs was rewritten: the network is as it was.{why}"
    before, after = report.before, report.after
    text = f"{changes} of {len(report.steps)} convs rewritten: {_ratio(before.macs, after.macs)} times fewer MACs"
    if bundle is None:
        text += f", {_ratio(before.params, after.params)} times fewer parameters"
    else:
        text += f", {_size(bundle.sizes[CONVERTED])} instead of {_size(bundle.sizes[ORIGINAL])}"
    parts = [text]
    if bundle is not None and bundle.bench is not None:
        parts.append(_speed(bundle.rows[CONVERTED], bundle.bench.main.threads))
    parts += [_nearness(report, bundle)]
    parts += [f"{name} {was:.4g} before, {now:.4g} after" for name, was, now in report.metrics]
    return "; ".join(filter(None, parts)) + "."


def _speed(row: ComparedFile, threads: int) -> str:
    where = f"with {count_threads(threads)} on this machine"
    if row.verdict not in ("faster", "slower"):
        return f"{row.verdict} in speed {where}"
    low, high = row.interval
    word = "times as fast" if row.verdict == "faster" else "times as fast, that is slower,"
    return f"{row.speedup:.2f} {word} (95 %: {low:.2f} to {high:.2f}) {where}"


def _nearness(report: Report, bundle: Bundle | None) -> str:
    """Return how near the outputs are: of the files, on held-out images, if there are any; else of the models."""
    if bundle is not None and CONVERTED in bundle.near:
        one = bundle.near[CONVERTED]
        sqnr_db, top1, where = one.sqnr_db, one.top1, bundle.agreement_on
    elif report.fidelity is not None:
        found = report.fidelity
        sqnr_db, top1, where = found.sqnr_db, found.agreement, f"the example's {found.rows} rows"
    else:
        return ""
    if top1 is not None:
        return f"same top-1 as the original on {100 * top1:.1f} % of {where}"
    if sqnr_db == -math.inf:
        return f"outputs that cannot be compared with the original's on {where}"
    return f"outputs at {sqnr_db:.1f} dB SQNR from the original's on {where}"


def cautions(report: Report, bundle: Bundle | None = None) -> list[str]:
    """Return what a reader of the sentence alone would get wrong."""
    found = [*report.notes, *(() if bundle is None else bundle.notes)]
    if bundle is not None and bundle.bench is not None and bundle.rewritten:
        found += [_not_faster(bundle), _against_dense_int8(bundle.rows), _macs_against_speed(report, bundle)]
    fidelity = report.fidelity
    if fidelity is not None and fidelity.sqnr_db < _FAR_DB and report.reconstruction is None:
        found.append(
            f"The outputs are far from the original's (SQNR {fidelity.sqnr_db:.1f} dB): without calibration images low "
            "ranks destroy what a network learned. Pass some, or a higher rank."
        )
    if bundle is not None:
        found.append(_mobile(bundle))
    return [text for text in found if text]


def _not_faster(bundle: Bundle) -> str:
    """Return the settings in which the converted file is not faster."""
    lost = []
    for timing in bundle.bench.timings if bundle.bench is not None else ():
        row = next(row for row in timing.rows if row.name == CONVERTED)
        if row.verdict != "faster":
            lost.append(f"{count_threads(timing.threads)} at level {timing.level} ({row.speedup:.2f})")
    return f"Not faster than the original with {', '.join(lost)}." if lost else ""


def _against_dense_int8(rows: dict[str, ComparedFile]) -> str:
    """Return whether quantising alone would have done."""
    if DENSE_INT8 not in rows:
        return ""
    dense = rows[DENSE_INT8].speedup
    best = max(rows[name].speedup for name in (CONVERTED, INT8) if name in rows)
    start = f"The original in int8, without any surgery, is {dense:.2f} times as fast"
    return (
        f"{start}: here quantising alone does as well." if dense >= best else f"{start}; the surgery gives {best:.2f}."
    )


def _macs_against_speed(report: Report, bundle: Bundle) -> str:
    speedup = bundle.rows[CONVERTED].speedup
    fewer = report.before.macs / report.after.macs if report.after.macs else 1.0
    if speedup >= 0.8 * fewer:
        return ""
    return f"There are {fewer:.2f} times fewer MACs, but the runtime is {speedup:.2f} times as fast."


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


def count_threads(count: int) -> str:
    """Return a number of threads in words."""
    return f"{count} thread{'s' if count > 1 else ''}"


def _size(count_bytes: int) -> str:
    return f"{count_bytes / 1e6:.2f} MB" if count_bytes >= 1e5 else f"{count_bytes / 1e3:.1f} kB"


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.1f}" if after else "infinitely many"
