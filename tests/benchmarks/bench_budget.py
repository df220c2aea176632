"""Budgets in MACs beside the uniform rank of about the same cost: calibrated, unlabelled, untrained.

python tests/benchmarks/bench_budget.py [resnet20 resnet56 dncnn vdsr] [--seeds 0 1 2] [--low-rank]

Networks, images and metrics are those of `bench_calibrated.py`; every conv may change that has at least 16
channels on both sides. `--low-rank` adds the dense low-rank forms to the candidates.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.forms.catalogue import BUDGET_FORMS
from tests.benchmarks.bench_calibrated import CASES
from tests.networks import pretrained

BUDGETS = {"resnet20": (0.3, 0.5), "resnet56": (0.5,), "dncnn": (0.25, 0.5), "vdsr": (0.5,)}
LOW_RANK = tuple(
    kind(rank=cs.Share(share))
    for kind in (cs.SpatialSeparable, cs.Tucker)
    for share in (0.12, 0.2, 0.3, 0.4, 0.55, 0.7)
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["resnet20"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--low-rank", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    forms = BUDGET_FORMS + (LOW_RANK if options.low_rank else ())
    rows = []
    for name in options.networks:
        for share in BUDGETS[name]:
            rows.append(_row(name, share, forms, options.seeds))
            print(rows[-1], flush=True)
    headers = ["network", "budget", "MACs", "dense", "mean", "spread", "seeds", "uniform", "its MACs", "seconds each"]
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f"))


def _row(name: str, share: float, forms: tuple[cs.Form, ...], seeds: list[int]) -> tuple[object, ...]:
    case, model = CASES[name], pretrained(name)
    found, start = [], time.perf_counter()
    for seed in seeds:
        result = _converted(name, model, seed, forms=forms, budget=cs.Budget(macs=share))
        found.append(case.metric(result.model))
        print(*(f"{item.measure} {item.error:.4f}{'*' if item.taken else ''}" for item in result.judged), flush=True)
    seconds = (time.perf_counter() - start) / len(seeds)
    rank = max(1, round(share * 9 * 64 / (64 + 9)))  # what a rank costs of a layer with 64 channels on both sides
    uniform = _converted(name, model, seeds[0], forms=[cs.DepthwiseSeparable(rank=rank)], allow_growth=True)
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    listed = ", ".join(f"{value:.2f}" for value in found)
    values = (case.metric(model), statistics.mean(found), spread, listed)
    return (
        name,
        share,
        _macs(result),
        *values,
        f"rank {rank}: {case.metric(uniform.model):.2f}",
        _macs(uniform),
        seconds,
    )


def _converted(name: str, model: nn.Module, seed: int, **choices: object) -> cs.Result:
    images = CASES[name].images(seed)
    return cs.convert(
        model,
        images[:1],
        policy=cs.min_channels(16),
        calibration=images,
        images=len(images),
        seed=seed,
        progress=False,
        **choices,  # type: ignore[arg-type]
    )


def _macs(result: cs.Result) -> float:
    return result.report.after.macs / result.report.before.macs


if __name__ == "__main__":
    main()
