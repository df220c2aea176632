"""A report in one sentence, and what should be held against it.

`deployed` is what `deploy.Deployment.to_dict` gives, or an empty mapping where nothing was exported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from convsurgeon.planning.plan import Change
from convsurgeon.report.rows import Rows

_FAR_DB = 6.0
"""Below this a quarter of the output's energy is error."""


def sentence(report: Rows, deployed: Mapping[str, Any]) -> str:
    """Which file to ship, where that was measured; what was done, what it bought and what it cost."""
    first = _shipped(deployed["recommended"]) if deployed.get("recommended") else ""
    return f"{first}{_done(report, deployed)}"


def _shipped(one: Mapping[str, Any]) -> str:
    """The recommended file, how fast it is, and how near."""
    where = f"with {_threads(one['threads'])} at level {one['level']}"
    if one["name"] == "original.onnx":
        return f"Ship original.onnx, the network as it was: no other file is faster {where} and near enough. "
    speed = f"{one['speedup']:.2f} times as fast as original.onnx {where}"
    over = one["over_dense_int8"]
    kind = ", the original without any surgery" if one["name"].startswith("original") else ""
    against = f", {over:.2f} times as fast as the quantised original" if over is not None and not kind else ""
    return (
        f"Ship {one['name']}{kind}: {speed}{against}; its error is {one['error']:.2g}, allowed {one['allowed']:.2g}. "
    )


def _done(report: Rows, deployed: Mapping[str, Any]) -> str:
    changes = sum(isinstance(step, Change) for step in report.steps)
    if not changes:
        why = f" {report.speed}" if report.speed else ""
        return f"None of {len(report.steps)} convs was rewritten: the network is as it was.{why}"
    parts = [f"{changes} of {len(report.steps)} convs rewritten: {_cheaper(report, deployed)}"]
    if main := _main(deployed):
        parts.append(_speed(_row(main, "model.onnx"), main["threads"]))
    parts.extend(filter(None, (_nearness(report, deployed), *(_metric(*metric) for metric in report.metrics))))
    return "; ".join(parts) + "."


def cautions(report: Rows, deployed: Mapping[str, Any]) -> list[str]:
    """What a reader who only sees the sentence would get wrong."""
    found = list(report.notes)
    if main := _main(deployed):
        found += [_settings(deployed["latency"][0]["timings"]), _dense(main)]
        found.append(_mac_ratio(report, _row(main, "model.onnx")["speedup"]))
    sqnr = report.fidelity.sqnr_db if report.fidelity else None
    if sqnr is not None and sqnr < _FAR_DB and not report.reconstruction:
        found.append(
            f"The outputs are far from the original's (SQNR {sqnr:.1f} dB): without calibration images low ranks "
            "destroy what a network learned. Pass some, or a higher rank."
        )
    if open_inputs := deployed.get("mobile", {}).get("model.onnx", {}).get("dynamic"):
        found.append(f"Mobile providers want static shapes, and {', '.join(open_inputs)} has open dimensions.")
    elif blocked := _blocked(deployed):
        found.append(f"Not every mobile provider takes model.onnx whole: {', '.join(blocked)}.")
    return [text for text in found if text]


def _cheaper(report: Rows, deployed: Mapping[str, Any]) -> str:
    macs = f"{_ratio(report.before.macs, report.after.macs)} times fewer MACs"
    sizes = {file["path"]: file["size_bytes"] for file in deployed.get("files", ())}
    if sizes:
        return f"{macs}, {_size(sizes['model.onnx'])} instead of {_size(sizes['original.onnx'])}"
    return f"{macs}, {_ratio(report.before.params, report.after.params)} times fewer parameters"


def _speed(row: Mapping[str, Any], threads: int) -> str:
    where = f"with {_threads(threads)} on this machine"
    if row["verdict"].startswith("no"):
        return f"{row['verdict']} in speed {where}"
    low, high = row["interval"]
    word = "times as fast" if row["verdict"] == "faster" else "times as fast, that is slower,"
    return f"{row['speedup']:.2f} {word} (95 %: {low:.2f} to {high:.2f}) {where}"


def _nearness(report: Rows, deployed: Mapping[str, Any]) -> str:
    """From the files, on held-back images, if there are any; else from the models."""
    near = deployed.get("agreement", {})
    for file in near.get("files", ()):
        if file["name"] == "model.onnx":
            return _near(float(file["sqnr_db"]), file["top1"], near["on"])
    if report.fidelity:
        found = report.fidelity
        return _near(found.sqnr_db, found.agreement, f"the example's {found.rows} rows")
    return ""


def _near(sqnr_db: float, top1: float | None, where: str) -> str:
    if top1 is not None:
        return f"same top-1 as the original on {100 * top1:.1f} % of {where}"
    if sqnr_db == -math.inf:
        return f"outputs that cannot be compared with the original's on {where}"
    return f"outputs at {sqnr_db:.1f} dB SQNR from the original's on {where}"


def _metric(name: str, before: float, after: float) -> str:
    return f"{name} {before:.4g} before, {after:.4g} after"


def _settings(timings: list[Mapping[str, Any]]) -> str:
    """Settings in which the converted file is not faster."""
    lost = []
    for timing in timings:
        row = _row(timing, "model.onnx")
        if row["verdict"] != "faster":
            lost.append(f"{_threads(timing['threads'])} at level {timing['level']} ({row['speedup']:.2f})")
    return f"Not faster than the original with {', '.join(lost)}." if lost else ""


def _dense(main: Mapping[str, Any]) -> str:
    """Whether quantising alone would have done."""
    rows = {row["name"]: row["speedup"] for row in main["rows"]}
    dense, best = rows.get("original-int8.onnx"), max(rows.get("model-int8.onnx", 0.0), rows["model.onnx"])
    if dense is None:
        return ""
    start = f"The original in int8, without any surgery, is {dense:.2f} times as fast"
    return (
        f"{start}: here quantising alone does as well." if dense >= best else f"{start}; the surgery gives {best:.2f}."
    )


def _mac_ratio(report: Rows, speedup: float) -> str:
    fewer = report.before.macs / report.after.macs if report.after.macs else 1.0
    if speedup >= 0.8 * fewer:
        return ""
    return f"MACs promise {fewer:.2f} times, the runtime delivers {speedup:.2f}: MACs are not milliseconds."


def _size(count_bytes: int) -> str:
    return f"{count_bytes / 1e6:.2f} MB" if count_bytes >= 1e5 else f"{count_bytes / 1e3:.1f} kB"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _blocked(deployed: Mapping[str, Any]) -> list[str]:
    found = []
    for one in deployed.get("mobile", {}).get("model.onnx", {}).get("providers", ()):
        if one["blocking"]:
            more = f" and {len(one['blocking']) - 1} more" if one["blocking"][1:] else ""
            found.append(f"{one['provider']} stops at {one['blocking'][0]}{more}")
    return found


def _main(deployed: Mapping[str, Any]) -> Mapping[str, Any]:
    timed = deployed.get("latency", ())
    return timed[0]["timings"][0] if timed else {}


def _row(timing: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(row for row in timing["rows"] if row["name"] == name)


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.1f}" if after else "infinitely many"
