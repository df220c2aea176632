"""What a report's page draws, as positions in percent and words: no markup, no escaping, plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from convsurgeon.planning.inspection import Curves
from convsurgeon.planning.plan import Change, Skip
from convsurgeon.report.rows import Rows

View = dict[str, Any]

_TOP_DB = 60.0
"""Outputs this near are drawn as equal."""
_SPARK = (104.0, 34.0)
"""Width and height of an energy curve, in pixels."""


def cards(report: Rows, deployed: Mapping[str, Any]) -> list[View]:
    """The figures that stand at the top: what, how much, in words."""
    found = [_card("MACs", report.before.macs, report.after.macs), _card("parameters", *_params(report))]
    rows = _rows(deployed)
    if "model.onnx" in rows:
        row = rows["model.onnx"]
        low, high = row["interval"]
        spread = f"95 %: {low:.2f} to {high:.2f}"
        found.insert(0, {"value": f"{row['speedup']:.2f}×", "name": "as fast as the original", "note": spread})
    for name, before, after in report.metrics:
        found.append({"value": f"{after:.4g}", "name": name, "note": f"{before:.4g} before"})
    near = {file["name"]: file for file in deployed.get("agreement", {}).get("files", ())}
    if "model.onnx" in near:
        found.append(_near_card(near["model.onnx"], deployed["agreement"]["on"]))
    elif report.fidelity:
        one = report.fidelity
        found.append(_near_card({"top1": one.agreement, "sqnr_db": one.sqnr_db}, "the example"))
    return found


def bars(report: Rows, deployed: Mapping[str, Any]) -> list[View]:
    """Before and after, one pair of bars each, as shares of the longer one."""
    pairs = [
        ("multiply-accumulates", report.before.macs, report.after.macs, _si),
        ("parameters", *_params(report), _si),
        ("peak activation", report.before.peak_activation_bytes, report.after.peak_activation_bytes, _bytes),
    ]
    sizes = {file["path"]: file["size_bytes"] for file in deployed.get("files", ())}
    if sizes:
        pairs.append(("ONNX file", sizes["original.onnx"], sizes["model.onnx"], _bytes))
    rows = _rows(deployed)
    if rows:
        times = [rows[name]["p50_ms"] for name in ("original.onnx", "model.onnx")]
        pairs.append((f"one run, {_setting(deployed['latency'][0]['timings'][0])}", *times, _ms))
        peaks = {file["name"]: file["peak_bytes"] for file in deployed["latency"][0]["files"]}
        if peaks["original.onnx"]:
            pairs.append(("peak memory of a process", peaks["original.onnx"], peaks["model.onnx"], _bytes))
    return [_bar(*pair) for pair in pairs]


def tradeoff(deployed: Mapping[str, Any]) -> View:
    """Every file as a point: time (or size) to the right, nearness to the original upwards; empty without files."""
    near = {file["name"]: file for file in deployed.get("agreement", {}).get("files", ())}
    if not near:
        return {}
    rows = _rows(deployed)
    sizes = {file["path"]: file["size_bytes"] / 1e6 for file in deployed["files"]}
    across = {name: row["p50_ms"] for name, row in rows.items()} if rows else sizes
    far = 1.12 * max(across.values())
    points = [
        {
            "name": name,
            "x": 100 * value / far,
            "y": _height(float(near[name]["sqnr_db"])) if name in near else 0.0,
            "words": _point_words(name, rows, sizes, near),
            "kind": "before" if name.startswith("original") else "after",
        }
        for name, value in sorted(across.items(), key=lambda item: item[1])
    ]
    ticks = [{"x": 100 * tick / far, "text": f"{tick:g}"} for tick in _ticks(far)]
    return {
        "points": points,
        "xticks": ticks,
        "yticks": [{"y": _height(value), "text": f"{value:.0f} dB"} for value in (0, 20, 40)]
        + [{"y": 0, "text": "same"}],
        "across": "ms for one run (p50)" if rows else "MB on disk",
        "on": deployed["agreement"]["on"],
    }


def layers(report: Rows, curves: Curves, timed: Mapping[str, Any]) -> list[View]:
    """One row per conv, with its energy curve and, where it was profiled, its time before and after."""
    names = [step.name for step in report.steps]
    times = [_by_owner(file["profile"]["nodes"], names) for file in _pair(timed)]
    fits = {} if report.reconstruction is None else {site.name: site for site in report.reconstruction.sites}
    return [_layer(step, curves.get(step.name, {}), times, fits.get(step.name)) for step in report.steps]


def skips(report: Rows) -> list[View]:
    """The convs that were left alone, by reason."""
    reasons: dict[str, list[str]] = {}
    for step in report.steps:
        if isinstance(step, Skip):
            reasons.setdefault(step.reason, []).append(step.name)
    return [{"reason": reason, "names": names} for reason, names in reasons.items()]


def speeds(timed: Mapping[str, Any]) -> View:
    """Speed-ups with their intervals on a logarithmic axis, setting by setting; empty without timing."""
    if not timed:
        return {}
    every = [row for timing in timed["timings"] for row in timing["rows"]]
    ends = [end for row in every for end in row["interval"]]
    low, high = min(0.8, *ends) / 1.05, max(1.25, *ends) * 1.05

    def place(value: float) -> float:
        return 100 * math.log(value / low) / math.log(high / low)

    return {
        "one": place(1.0),
        "ticks": [{"x": place(tick), "text": f"{tick:g}×"} for tick in _log_ticks(low, high)],
        "settings": [
            {
                "name": _setting(timing),
                "noise": (place(1 / timing["noise"]), place(timing["noise"])),
                "rows": [_speed(row, place) for row in timing["rows"][1:]],
                "baseline": f"{timing['rows'][0]['p50_ms']:.3f} ms",
            }
            for timing in timed["timings"]
        ],
    }


def shares(timed: Mapping[str, Any]) -> list[View]:
    """The ten modules that take most time in either file, as bars of microseconds."""
    if not timed:
        return []
    before, after = (_by_owner(file["profile"]["nodes"], _nodes(timed)) for file in _pair(timed))
    order = sorted({**before, **after}, key=lambda name: -max(before.get(name, 0), after.get(name, 0)))
    longest = max((*before.values(), *after.values()), default=1.0)
    return [_bar(name, before.get(name, 0.0), after.get(name, 0.0), _us, longest) for name in order[:10]]


def _layer(step: Change | Skip, curves: Mapping[str, Sequence[float]], times: list[dict[str, float]], fit: Any) -> View:
    site, change = step.site, step if isinstance(step, Change) else None
    output = "×".join(map(str, site.calls[0].output_shape[1:])) if site.calls else "never run"
    return {
        "name": step.name,
        "conv": str(site.geometry).replace("->", "→"),
        "output": output + (f", {len(site.calls)} calls" if len(site.calls) > 1 else ""),
        "becomes": change.form.label if change else "",
        "reason": "" if change else step.reason,  # type: ignore[union-attr]
        "lost": change.lost if change else None,
        "params": (site.params, change.params_after if change else None),
        "macs": (site.macs, change.macs_after if change else None),
        "us": [1e3 * one[step.name] if step.name in one else None for one in times],
        "fit": (fit.before, fit.after) if fit is not None else None,
        "curves": [_curve(word, kept, change) for word, kept in curves.items()],
    }


def _curve(word: str, kept: Sequence[float], change: Change | None) -> View:
    """A polyline over the ranks, and a dot at the rank that was taken."""
    width, height = _SPARK
    step = (width - 12) / max(len(kept) - 1, 1)
    points = [(6 + index * step, 4 + (1 - value) * (height - 8)) for index, value in enumerate(kept)]
    taken = change.rank - 1 if change is not None and change.form.label.startswith(f"{word} ") else -1
    words = ", ".join(f"rank {rank} {100 * value:.0f} %" for rank, value in enumerate(kept, 1))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dot = [points[taken]] if 0 <= taken < len(points) else []
    return {"word": word, "line": line, "dots": dot, "words": f"{word}: {words}"}


def _speed(row: Mapping[str, Any], place: Any) -> View:
    low, high = row["interval"]
    kind = {"faster": "good", "slower": "bad"}.get(row["verdict"], "even")
    words = f"{row['speedup']:.2f}× ({low:.2f} to {high:.2f})"
    left, right = place(low), place(high)
    return {
        **{"name": row["name"], "verdict": row["verdict"], "kind": kind, "words": words},
        **{"left": left, "width": right - left, "dot": place(row["speedup"])},
    }


def _by_owner(nodes: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Milliseconds by owner, the longest of `names` that a node's name begins with."""
    known, found = set(names), dict[str, float]()
    for node in nodes:
        owner = "(layout)" if node["inserted"] else str(node["name"])
        while owner not in known and "." in owner:
            owner = owner.rpartition(".")[0]
        owner = owner if owner in known or node["inserted"] else str(node["name"])
        found[owner] = found.get(owner, 0.0) + node["ms"]
    return found


def _nodes(timed: Mapping[str, Any]) -> list[str]:
    return [node["name"] for node in _pair(timed)[0]["profile"]["nodes"] if not node["inserted"]]


def _pair(timed: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The original's and the converted file's entry, or nothing."""
    files = {file["name"]: file for file in timed.get("files", ())}
    return [files[name] for name in ("original.onnx", "model.onnx") if name in files]


def _rows(deployed: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    timed = deployed.get("latency") or []
    return {row["name"]: row for row in timed[0]["timings"][0]["rows"]} if timed else {}


def _params(report: Rows) -> tuple[int, int]:
    return report.before.params, report.after.params


def _card(name: str, before: float, after: float) -> View:
    fewer = f"{before / after:.1f}×" if after else "all"
    return {"value": fewer, "name": f"fewer {name}", "note": f"{_si(before)} to {_si(after)}"}


def _near_card(file: Mapping[str, Any], where: str) -> View:
    sqnr = float(file["sqnr_db"])
    noise = "identical" if sqnr == math.inf else f"{sqnr:.1f} dB"
    if file["top1"] is None:
        return {"value": noise, "name": "SQNR to the original", "note": where}
    return {"value": f"{100 * file['top1']:.1f} %", "name": "same top-1", "note": f"{where}; SQNR {noise}"}


def _bar(name: str, before: float, after: float, words: Any, longest: float = 0.0) -> View:
    """A pair of bars, in percent of the longest of all, or of the longer of the two."""
    longest = longest or max(before, after) or 1
    ratio = f"{after / before:.2f}" if before else ""
    return {
        "name": name,
        "ratio": ratio,
        "before": {"width": 100 * before / longest, "text": words(before)},
        "after": {"width": 100 * after / longest, "text": words(after)},
    }


def _point_words(
    name: str, rows: Mapping[str, Any], sizes: Mapping[str, float], near: Mapping[str, Mapping[str, Any]]
) -> str:
    words = [f"{rows[name]['speedup']:.2f}×"] if name in rows else []
    words.append(f"{sizes[name]:.2f} MB")
    if name in near:
        sqnr, top1 = float(near[name]["sqnr_db"]), near[name]["top1"]
        words.append("identical outputs" if sqnr == math.inf else f"{sqnr:.1f} dB")
        words += [f"same top-1 on {100 * top1:.1f} %"] if top1 is not None else []
    return ", ".join(words)


def _height(sqnr_db: float) -> float:
    """Percent from the top: 0 where outputs are equal, 100 at 0 dB."""
    if math.isnan(sqnr_db):
        return 100.0
    return 100 * (1 - min(max(sqnr_db, 0.0), _TOP_DB) / _TOP_DB)


def _ticks(far: float) -> list[float]:
    """Four or five round numbers from zero."""
    step = 10 ** math.floor(math.log10(far))
    step = next(part * step for part in (0.1, 0.2, 0.25, 0.5, 1, 2) if far / (part * step) <= 5.5)
    return [round(index * step, 10) for index in range(int(far / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    every = [0.1, 0.2, 0.5, 1, 2, 3, 5, 8, 12, 20, 50, 100]
    few = [0.1, 0.5, 1, 2, 5, 10, 50, 100] if high / low > 10 else [0.5, 0.8, 1, 1.5, 2, 3, 5, 8]
    return [tick for tick in sorted({*few} if high / low < 30 else {*every}) if low <= tick <= high]


def _setting(timing: Mapping[str, Any]) -> str:
    return f"{timing['threads']} thread{'s' if timing['threads'] > 1 else ''}, level {timing['level']}"


def _si(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _bytes(value: float) -> str:
    return f"{value / 1e6:.3g} MB" if value >= 1e6 else f"{value / 1e3:.3g} kB"


def _ms(value: float) -> str:
    return f"{value:.3g} ms"


def _us(value: float) -> str:
    return f"{1e3 * value:,.0f} µs" if value else "–"
