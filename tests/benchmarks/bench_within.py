"""`within=` on real networks: what the search asks, how long it takes, and what a fine sweep finds beside it.

    python tests/benchmarks/bench_within.py [resnet20 dncnn] [--within 1.0 0.2] [--seeds 0] [--sweep 0]

A point of top-1 for CIFAR networks, 0.2 dB of PSNR for the others, of images as in `bench_calibrated.py`. With
`--sweep N` the milliseconds that the search may reach are also walked in N even steps, each with weights fitted to all
images, and the fastest that is good enough stands beside what was found: this takes N times half a minute and more.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.calibration.dataset import read
from convsurgeon.forms.catalogue import BUDGET_FORMS
from convsurgeon.search.fastest import WORTH, quickest
from convsurgeon.search.trial import best_plan, opened, rate, trial
from tests.benchmarks.bench_calibrated import CASES
from tests.benchmarks.bench_equal_accuracy import TIMED, TOLERANCES
from tests.networks import pretrained


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["resnet20", "dncnn"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sweep", type=int, default=0, metavar="STEPS")
    parser.add_argument("--cache", help="folder of latency tables; the user's if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [_row(name, seed, options.sweep, options.cache) for name in options.networks for seed in options.seeds]
    headers = ("network", "seed", "evaluations", "minutes", "dense", "metric", "by table", "measured", "best of sweep")
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f"))


def _row(name: str, seed: int, steps: int, cache: str | None) -> tuple[object, ...]:
    case, model = CASES[name], pretrained(name)
    images, example = case.images(seed), torch.zeros(TIMED[name])
    asked = [0]

    def metric(candidate: nn.Module) -> float:
        asked[0] += 1
        return case.metric(candidate)

    table = cs.LatencyTable.measure(model, example, BUDGET_FORMS, cache=cache, progress=False)
    started = time.perf_counter()
    given = {"calibration": images, "images": len(images), "seed": seed, "latencies": table, "progress": False}
    result = cs.convert(model, example, metric=metric, within=TOLERANCES[name], **given)  # type: ignore[arg-type]
    minutes = (time.perf_counter() - started) / 60
    print(name, seed, result.report.speed)
    print(result.report.searched.text(), flush=True)
    speeds = [(one.dense_ms / one.predicted_ms, one.dense_ms / one.measured_ms) for one in result.timings if one.taken]
    best = _swept(name, seed, table, steps) if steps else None
    dense, found = case.metric(model), case.metric(result.model)
    return name, seed, asked[0], minutes, dense, found, *(speeds or [(1.0, 1.0)])[-1], best


def _swept(name: str, seed: int, table: cs.LatencyTable, steps: int) -> float:
    """Speed-up by the table of the fastest of many plans that is good enough."""
    case, model = CASES[name], pretrained(name)
    images, seen = case.images(seed), cs.capture(model, torch.zeros(TIMED[name]))
    found = opened(seen, BUDGET_FORMS, None, True).paying(table)
    data = read(images, seen.example, len(images))
    rated = rate(found, data, seed, progress=False)
    least = case.metric(model) - TOLERANCES[name]
    best = 1.0
    for share in np.geomspace(quickest(found.options, table) / table.total_ms * 1.001, 1 / WORTH, steps):
        plan = best_plan(rated, cs.Budget(latency=float(share)), table, confirm=False).plan
        speed, value = table.total_ms / table.predict(plan), case.metric(trial(rated, plan, data.images)[0])
        print(f"  sweep: {speed:.2f} times as fast, {value:.2f}", flush=True)
        best = max(best, speed) if value >= least else best
    return best


if __name__ == "__main__":
    main()
