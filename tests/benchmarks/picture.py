"""The picture of README: what the default gives on real networks, from `results/networks.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.benchmarks import runner

PICTURE = runner.ROOT / "examples" / "networks.svg"
_CONVERTED, _LEFT = "#2563a8", "#b0b8c0"


def write(target: Path = PICTURE) -> None:
    """Draw one bar for each network, of its first seed, with what its own metric was before and after."""
    import matplotlib
    from matplotlib import pyplot

    rows = json.loads((runner.RESULTS / "networks.json").read_text(encoding="utf-8"))["rows"]
    first = {row["network"]: row for row in rows[::-1] if row["goal"] == "default" and "lost" in row}
    shown = sorted(first.values(), key=_speed)
    with matplotlib.rc_context({"svg.hashsalt": "convsurgeon", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(7.5, 0.34 * len(shown) + 0.9))
        bars = axes.barh(
            [row["network"] for row in shown],
            [_speed(row) for row in shown],
            color=[_CONVERTED if _speed(row) > 1 else _LEFT for row in shown],
        )
        axes.bar_label(bars, [_label(row) for row in shown], padding=4)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlim(0, 1.45 * max(map(_speed, shown)))
        axes.set_xlabel("times as fast in onnxruntime, one thread; its own metric before and after")
        axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(target, metadata={"Date": None})
        pyplot.close(figure)


def _speed(row: dict[str, Any]) -> float:
    return float(row.get("times as fast", 1.0))


def _label(row: dict[str, Any]) -> str:
    unit = f" {row['unit']}" if row["unit"] != "%" else ""
    if _speed(row) == 1:
        return "left as it was"
    return f"{_speed(row):.2f}:  {row['before']:.2f} to {row['after']:.2f}{unit}"
