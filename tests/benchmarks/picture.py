"""The picture of README: speed against each network's own metric, way by way, from `results/alternatives.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import runner

PICTURE = runner.ROOT / "examples" / "trade_off.svg"
NETWORKS = {
    "100 classes": "classifier of 100 classes, top-1 in %",
    "resnet20": "ResNet-20 on CIFAR-10, top-1 in %",
    "lines u-net": "U-Net for thin lines, IoU in %",
    "super-resolution 50": "super-resolution, PSNR in dB",
}
WAYS = {
    "converted": ("convsurgeon, default call", "o", "#0d7a6f"),
    "ours": ("convsurgeon, distilled", "P", "#0d7a6f"),
    "int8": ("int8 of onnxruntime", "s", "#2563a8"),
    "pruned": ("pruned, distilled", "v", "#b3642a"),
    "Network Decoupling": ("Network Decoupling, distilled", "^", "#8a5aa8"),
    "Tucker": ("Tucker, distilled", "D", "#7d7326"),
}
"""How a way begins in the results -> its name, marker and colour."""

Row = dict[str, Any]


def write(target: Path = PICTURE) -> None:
    """Draw one panel for each network: to the right faster, upwards nearer to the original's own metric."""
    import matplotlib
    from matplotlib import pyplot

    rows = json.loads((runner.RESULTS / "alternatives.json").read_text(encoding="utf-8"))["rows"]
    with matplotlib.rc_context({"svg.hashsalt": "convsurgeon", "font.size": 9}):
        figure, panels = pyplot.subplots(2, 2, figsize=(7.5, 4.9))
        for axes, (network, title) in zip(panels.flat, NETWORKS.items(), strict=True):
            _draw(axes, [row for row in rows if row["network"] == network])
            axes.set_title(title, fontsize=9, loc="left")
        known = {
            name: drawn for axes in panels.flat for drawn, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.supxlabel(
            "times as fast as the original in onnxruntime, one thread; the best is at the upper right", fontsize=9
        )
        figure.tight_layout(rect=(0, 0, 1, 0.89))
        figure.legend(known.values(), known.keys(), loc="upper center", ncols=3, frameon=False)
        figure.savefig(target, metadata={"Date": None})
        pyplot.close(figure)


def _draw(axes: Any, rows: Sequence[Row]) -> None:
    """Draw one network's original, and what each way makes of it, with one standard error of the difference."""
    before = next(row["before"] for row in rows if "before" in row)
    axes.axhline(before, color="#b0b8c0", linewidth=0.8, zorder=0)
    axes.plot(1, before, "*", color="black", markersize=10, linestyle="none", label="original")
    for start, (name, marker, colour) in WAYS.items():
        if (row := best(rows, start)) is not None:
            place = (row["times as fast"], row["after"])
            axes.errorbar(*place, yerr=row["±"], fmt=marker, color=colour, markersize=6, capsize=2, label=name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xticks([0.5, 1, 1.5, 2, 2.5])
    axes.margins(y=0.15)


def best(rows: Sequence[Row], way: str) -> Row | None:
    """Return what loses least of a way's rows, after it was distilled where it was; None where it failed."""
    fitting = [row for row in rows if row["way"].startswith(way) and "lost" in row]
    return min(fitting, key=lambda row: float(row["lost"]), default=None)
