"""The figure that counts: measured speed-up at equal accuracy, label-free, untrained, one thread.

    python tests/benchmarks/bench_equal_accuracy.py [resnet20 resnet56 dncnn vdsr] [--shares 0.5 0.45] [--seeds 0 1 2]

Equal is a mean over the seeds within one point of top-1 or 0.2 dB of dense. Each network is planned within shares of
its latency. Ways: `default` (the candidates of a budget: CP of many ranks, separable of few), `branches` (separable and
blueprint of ranks 1 to 5), `low-rank` (these and the dense low-rank forms), `svd` (branches with the weights' own
factors). The speed-up is of the whole network in onnxruntime, measured in turns with the original; images as in
`bench_calibrated.py`, which also has the metrics; inputs that are timed: 32x32 for CIFAR, 128x128 for the others.
Which share is reported is found with the test images, so it is to be read as that of the class of plans.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.calibration.dataset import read
from convsurgeon.forms.catalogue import BUDGET_FORMS
from convsurgeon.search.trial import best_plan, opened, rate
from tests.benchmarks.bench_budget import BRANCHES, LOW_RANK
from tests.benchmarks.bench_calibrated import CASES
from tests.networks import pretrained

TOLERANCES = {"resnet20": 1.0, "resnet56": 1.0, "dncnn": 0.2, "vdsr": 0.2}
TIMED = {"resnet20": (1, 3, 32, 32), "resnet56": (1, 3, 32, 32), "dncnn": (1, 1, 128, 128), "vdsr": (1, 1, 128, 128)}
WAYS = {"default": BUDGET_FORMS, "branches": BRANCHES, "low-rank": (*BRANCHES, *LOW_RANK), "svd": BRANCHES}


HEADERS = ("network", "way", "seed", "latency", "MACs", "dense", "metric", "promised", "speed-up", "seconds", "load")
Row = tuple[str, str, int, float, float, float, float, float, float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["resnet20"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.45, 0.42])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["default"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", help="folder of latency tables; the user's if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.networks:
        rows: list[Row] = []
        for way in options.ways:
            for seed in options.seeds:
                rows += _tried(name, way, seed, sorted(options.shares, reverse=True), options.cache)
        print(tabulate(rows, HEADERS, tablefmt="pipe", floatfmt=".3f"))
        headers = ("network", "way", "latency", "seeds", "MACs", "metric", "spread", "equal", "speed-up", "spread")
        print(tabulate(_summed(rows), headers, tablefmt="pipe", floatfmt=".3f"), flush=True)


def _tried(name: str, way: str, seed: int, shares: list[float], cache: str | None) -> Iterator[Row]:
    """A row per share."""
    case, model = CASES[name], pretrained(name)
    dense = case.metric(model)
    images = case.images(seed)
    timed = torch.zeros(TIMED[name])
    table = cs.LatencyTable.measure(model, timed, WAYS[way], cache=cache, progress=False)
    seen = cs.capture(model, timed)
    data = None if way == "svd" else read(images, seen.example, len(images))
    rated = rate(opened(seen, WAYS[way], None, True).paying(table), data, seed, progress=False)
    for share in shares:
        started = time.perf_counter()
        try:
            best = best_plan(rated, cs.Budget(latency=share), table)
        except cs.BudgetError as error:
            print(error, flush=True)
            return
        found = case.metric(_converted(name, best.plan, None if way == "svd" else images, seed))
        (timing,) = (one for one in best.timings if one.taken)
        speeds = (timing.dense_ms / timing.predicted_ms, timing.dense_ms / timing.measured_ms)
        macs = best.plan.macs_after / best.plan.cost.macs
        seconds = time.perf_counter() - started
        yield name, way, seed, share, macs, dense, found, *speeds, seconds, os.getloadavg()[0]


def _summed(rows: list[Row]) -> Iterator[tuple[object, ...]]:
    """Per way and share the means and deviations over the seeds; equal is what the mean of the metric says."""
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row[0], row[1], row[3]), []).append(row)
    for (name, way, share), several in groups.items():
        metrics, speeds = [row[6] for row in several], [row[8] for row in several]
        equal = statistics.mean(metrics) >= several[0][5] - TOLERANCES[name]
        spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in (metrics, speeds)]
        macs = statistics.mean(row[4] for row in several)
        figures = (macs, statistics.mean(metrics), spreads[0], equal, statistics.mean(speeds), spreads[1])
        yield name, way, share, len(several), *figures


def _converted(name: str, plan: cs.Plan, images: torch.Tensor | None, seed: int) -> nn.Module:
    kept = {"calibration": images, "images": 1024, "seed": seed, "progress": False}
    return cs.carry_out(pretrained(name), plan, torch.zeros(TIMED[name]), **kept).model  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
