"""How to rate a layer's error: one plan per measure at the same MACs, each fitted to all images and scored.

    python tests/benchmarks/bench_measures.py [resnet20 resnet56 dncnn vdsr] [--shares 0.3 0.5] [--seeds 0 1 2]

`uniform`: the separable rank everywhere whose MACs come nearest. `weights`: energy of the kernels. `output`: energy of
each conv's own output. `network`: first-order effect on the network's output. `one at a time`: the network's own error
with this layer alone changed, weights from the SVD (`--one-at-a-time`; a forward pass per layer and form). The contest,
which `convert` holds, takes the one whose trial loses least on held-back images (marked *).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.calibration.dataset import read
from convsurgeon.forms.catalogue import BUDGET_FORMS
from convsurgeon.search.choice import problem
from convsurgeon.search.trial import Appraised, appraise, trial
from tests.benchmarks.bench_calibrated import CASES
from tests.networks import pretrained

POLICY = cs.min_channels(16)
ALONE = 64
"""Images for one layer at a time."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["resnet20"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--one-at-a-time", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.networks:
        found: dict[tuple[float, str], list[tuple[float, float, float]]] = {}
        for seed in options.seeds:
            for share, measure, *values in _scored(name, options.shares, seed, options.one_at_a_time):
                found.setdefault((share, measure), []).append((values[0], values[1], values[2]))
                print(name, seed, share, measure, *values, flush=True)
        rows += [(name, share, measure, *_summary(several)) for (share, measure), several in found.items()]
    headers = ["network", "budget", "layers rated by", "MACs", "error on trial", "metric", "spread", "n"]
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".4f"))


def _summary(several: list[tuple[float, float, float]]) -> tuple[object, ...]:
    macs, errors, metrics = ([one[place] for one in several] for place in range(3))
    spread = statistics.stdev(metrics) if len(metrics) > 1 else 0.0
    return statistics.mean(macs), statistics.mean(errors), statistics.mean(metrics), spread, len(several)


def _scored(name: str, shares: list[float], seed: int, alone: bool) -> list[tuple[float, str, float, float, float]]:
    case, model = CASES[name], pretrained(name)
    images = case.images(seed)
    seen = cs.capture(model, images[:1])
    data = read(images, seen.example, len(images))
    rated = appraise(seen, BUDGET_FORMS, POLICY, False, data, seed, progress=False)
    measures = dict(rated.measures)
    if alone:
        measures["one at a time"] = _one_at_a_time(model, rated, images[:ALONE])
    rows = []
    for share in shares:
        task = problem(seen, rated.base, rated.options, cs.Budget(macs=share), None)
        plans = {"uniform": _uniform(model, images[:1], share)}
        plans |= {measure: task.plan(errors) for measure, errors in measures.items()}
        for measure, plan in plans.items():
            error = trial(rated, plan)[1]
            kept = {"calibration": images, "images": len(images), "seed": seed, "progress": False}
            metric = case.metric(cs.carry_out(model, plan, images[:1], **kept).model)  # type: ignore[arg-type]
            rows.append((share, measure, plan.macs_after / plan.cost.macs, error, metric))
    return rows


def _uniform(model: nn.Module, example: Tensor, share: float) -> cs.Plan:
    """The rank whose MACs come nearest to the share."""
    forms = [cs.DepthwiseSeparable(rank=rank) for rank in range(1, 7)]
    plans = [cs.plan(model, example, forms=[form], policy=POLICY, allow_growth=True) for form in forms]
    return min(plans, key=lambda plan: abs(plan.macs_after / plan.cost.macs - share))


def _one_at_a_time(model: nn.Module, rated: Appraised, images: Tensor) -> dict[tuple[str, str], float]:
    """The network's squared error with one layer changed."""
    found = {}
    with torch.inference_mode():
        wanted = model(images)
        for name, changes in rated.options.items():
            for change in changes:
                steps = [change if step.name == name else cs.Skip(step.site, "dense") for step in rated.base.steps]
                plan = cs.Plan(tuple(steps), rated.base.cost, rated.base.example)
                alone = cs.operate(model, plan, rated.seen.example)[0]
                found[name, change.form.label] = float((alone(images) - wanted).square().sum())
    return found


if __name__ == "__main__":
    main()
