"""Budgets in MACs, and every form by itself at a like share: calibrated, unlabelled, untrained.

python tests/benchmarks/bench_budget.py [resnet20 resnet56 dncnn vdsr] [--shares 0.3] [--seeds 0 1 2] [--uniform]

Networks, images and metrics are those of `bench_calibrated.py`; every conv may change that has at least 16 channels on
both sides. `--low-rank` adds the dense low-rank forms to the candidates. `--uniform` also converts with one form at one
share of every layer, which for CP and the dense low-rank forms is a width, for separable and blueprint a rank.
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

BUDGETS = {"resnet20": (0.3, 0.25, 0.2), "resnet56": (0.3, 0.2), "dncnn": (0.25,), "vdsr": (0.3,)}
KINDS = (cs.CP, cs.DepthwiseSeparable, cs.Blueprint, cs.SpatialSeparable, cs.Tucker)
LOW_RANK = tuple(
    kind(rank=cs.Share(share))
    for kind in (cs.SpatialSeparable, cs.Tucker)
    for share in (0.12, 0.2, 0.3, 0.4, 0.55, 0.7)
)
BRANCHES = tuple(kind(rank=rank) for kind in (cs.DepthwiseSeparable, cs.Blueprint) for rank in range(1, 6))
"""The candidates before there was CP."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["resnet20"], choices=list(BUDGETS))
    parser.add_argument("--shares", type=float, nargs="+", help="of the MACs; those of the pages if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--low-rank", action="store_true")
    parser.add_argument("--uniform", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    forms = BUDGET_FORMS + (LOW_RANK if options.low_rank else ())
    rows = []
    for name in options.networks:
        for share in options.shares or BUDGETS[name]:
            choices: list[tuple[str, dict[str, object]]] = [
                ("planned", {"forms": forms, "budget": cs.Budget(macs=share)})
            ]
            if options.uniform:
                choices += [(kind.word, {"forms": [kind(rank=cs.Share(share))]}) for kind in KINDS]
            for way, choice in choices:
                rows.append((name, share, way, *_row(name, options.seeds, choice)))
                print(*rows[-1], flush=True)
    headers = ["network", "share", "way", "MACs", "dense", "mean", "spread", "seeds", "seconds each"]
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f"))


def _row(name: str, seeds: list[int], choice: dict[str, object]) -> tuple[object, ...]:
    case, model = CASES[name], pretrained(name)
    found, start = [], time.perf_counter()
    for seed in seeds:
        result = _converted(name, model, seed, **choice)
        found.append(case.metric(result.model))
        for item in result.judged:
            print(f"{item.measure} {item.error:.4f}{'*' if item.taken else ''}", end=" ", flush=True)
    seconds = (time.perf_counter() - start) / len(seeds)
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    listed = ", ".join(f"{value:.2f}" for value in found)
    return _macs(result), case.metric(model), statistics.mean(found), spread, listed, seconds


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
