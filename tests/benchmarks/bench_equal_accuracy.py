"""The figure that counts: measured speed-up at equal accuracy, label-free, untrained, one thread.

    python tests/benchmarks/bench_equal_accuracy.py [resnet20 resnet56 dncnn vdsr] [--shares 0.7 0.6 0.5] [--seeds 0]

Equal is within one point of top-1 or 0.2 dB of dense. Each network is planned within shares of its latency, from the
largest on, until it is equal no more; the last that was counts. Ways: `default` (the candidates of a budget: CP of
many ranks, separable of few), `branches` (separable and blueprint of ranks 1 to 5), `low-rank` (these and the dense
low-rank forms), `svd` (branches with the weights' own factors). The
speed-up is of the whole network in onnxruntime, measured in turns with the original; images as in
`bench_calibrated.py`, which also has the metrics; inputs that are timed: 32x32 for CIFAR, 128x128 for the others.
The point at which to stop is found with the test images, so a share is to be read as that of the class of plans.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.budget.trial import appraise, best_plan
from convsurgeon.fit.calibration import read
from convsurgeon.forms.catalogue import BUDGET_FORMS
from tests.benchmarks.bench_budget import BRANCHES, LOW_RANK
from tests.benchmarks.bench_calibrated import CASES
from tests.networks import pretrained

TOLERANCES = {"resnet20": 1.0, "resnet56": 1.0, "dncnn": 0.2, "vdsr": 0.2}
TIMED = {"resnet20": (1, 3, 32, 32), "resnet56": (1, 3, 32, 32), "dncnn": (1, 1, 128, 128), "vdsr": (1, 1, 128, 128)}
WAYS = {"default": BUDGET_FORMS, "branches": BRANCHES, "low-rank": (*BRANCHES, *LOW_RANK), "svd": BRANCHES}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["resnet20"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.6, 0.55, 0.5, 0.45])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["default"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cache", help="folder of latency tables; the user's if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.networks:
        for way in options.ways:
            for seed in options.seeds:
                for row in _tried(name, way, seed, sorted(options.shares, reverse=True), options.cache):
                    rows.append(row)
                    print(*row, flush=True)
    headers = [
        "network",
        "way",
        "seed",
        "latency",
        "MACs",
        "dense",
        "metric",
        "equal",
        "promised",
        "speed-up",
        "seconds",
        "load",
    ]
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".3f"))


def _tried(name: str, way: str, seed: int, shares: list[float], cache: str | None) -> Iterator[tuple[object, ...]]:
    """A row per share, up to the first at which the network is not equal any more."""
    case, model = CASES[name], pretrained(name)
    dense = case.metric(model)
    images = case.images(seed)
    timed = torch.zeros(TIMED[name])
    table = cs.LatencyTable.measure(model, timed, WAYS[way], cache=cache, progress=False)
    seen = cs.capture(model, timed)
    data = None if way == "svd" else read(images, seen.example, len(images))
    rated = appraise(seen, WAYS[way], None, True, data, seed, progress=False)
    for share in shares:
        started = time.perf_counter()
        try:
            best = best_plan(rated, cs.Budget(latency=share), table)
        except cs.BudgetError as error:
            print(error, flush=True)
            return
        found = case.metric(_converted(name, best.plan, None if way == "svd" else images, seed))
        (timing,) = (one for one in best.timings if one.taken)
        equal = found >= dense - TOLERANCES[name]
        speeds = (timing.dense_ms / timing.predicted_ms, timing.dense_ms / timing.measured_ms)
        macs = best.plan.macs_after / best.plan.cost.macs
        seconds = time.perf_counter() - started
        yield name, way, seed, share, macs, dense, found, equal, *speeds, seconds, f"{os.getloadavg()[0]:.1f}"
        if not equal and way != "svd":
            return


def _converted(name: str, plan: cs.Plan, images: torch.Tensor | None, seed: int) -> nn.Module:
    kept = {"calibration": images, "images": 1024, "seed": seed, "progress": False}
    return cs.carry_out(pretrained(name), plan, torch.zeros(TIMED[name]), **kept).model  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
