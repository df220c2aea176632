"""How top-1 of a converted ResNet-20 grows with the number of calibration images: a table, and the plot of the docs.

python tests/benchmarks/bench_images.py [--seeds 0 1] [--out convsurgeon/fit/calibration.svg]     (matplotlib)

Rank 2, every conv but the stem, 932 test images; a fifth of the images, at most 128, is held back for judging.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path

import matplotlib as mpl
import torch
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from tests.networks import cifar_calibration, cifar_top1, pretrained

SIZES = (16, 32, 64, 128, 256, 512, 1000, 2000, 4000)
FORMS = (cs.DepthwiseSeparable(rank=2), cs.Blueprint(rank=2))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", default="convsurgeon/fit/calibration.svg")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*images are few")
    model = pretrained("resnet20")
    rows = []
    for size in SIZES:
        for form in FORMS:
            rows.append(_row(model, form, size, options.seeds))
            print(rows[-1], flush=True)
    print(tabulate(rows, ["images", "form", "mean", "spread", "seeds", "seconds each"], "pipe", floatfmt=".2f"))
    _draw(rows, cifar_top1(model), options.out)


def _row(model: torch.nn.Module, form: cs.Form, size: int, seeds: list[int]) -> tuple[object, ...]:
    found, start = [], time.perf_counter()
    for seed in seeds:
        images = cifar_calibration(size, seed)
        result = cs.convert(
            model,
            images[:1],
            forms=[form],
            policy=cs.min_channels(16),
            allow_growth=True,
            calibration=images,
            images=size,
            seed=seed,
            progress=False,
        )
        found.append(cifar_top1(result.model))
    seconds = (time.perf_counter() - start) / len(seeds)
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    return size, form.label, statistics.mean(found), spread, ", ".join(f"{x:.2f}" for x in found), seconds


def _draw(rows: list[tuple[object, ...]], dense: float, path: str) -> None:
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "convsurgeon"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for form in FORMS:
        points = [row for row in rows if row[1] == form.label]
        sizes, means, spreads = ([row[column] for row in points] for column in (0, 2, 3))
        axes.errorbar(sizes, means, spreads, marker="o", capsize=3, label=form.label)
    axes.axhline(dense, color="grey", linestyle=":", label="dense")
    axes.axvline(1024, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.set(xlabel="calibration images, unlabelled (vertical line: the default, 1024)", ylabel="top-1, %")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
