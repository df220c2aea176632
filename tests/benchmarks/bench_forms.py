"""What each form by itself takes in onnxruntime at like MACs, whole networks; and the least latency that plans reach.

    python tests/benchmarks/bench_forms.py [resnet18 resnet50 dncnn] [--threads 1 2] [--share 0.3] [--least resnet50]

Every dense conv of 16 channels or more takes the form, with about `--share` of its MACs; separable and blueprint have
the rank that is nearest (2 for 0.3). `CP, separable at a stride` is for the first conv of CP, which runs before the
stride. Weights are random: only time counts. `--least` plans one network within shares of its milliseconds, each
with the candidates of a budget and with these without LowRank, down to the least that the table allows, and times what
comes out.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.forms.catalogue import BUDGET_FORMS
from convsurgeon.search.trial import appraise
from tests.benchmarks.bench_latency_table import NETWORKS, within

STEPS = (0.5, 0.4, 0.3, 0.25, 0.2, 0.15)
"""Shares of the milliseconds that are tried."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet18", "resnet50", "dncnn"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--share", type=float, default=0.3, help="of every conv's MACs")
    parser.add_argument("--least", nargs="*", default=[], choices=list(NETWORKS), help="networks to plan")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row for name in options.networks for threads in options.threads for row in _forms(name, threads, options.share)
    ]
    _shown(rows, "form")
    _shown(
        [row for name in options.least for threads in options.threads for row in _least(name, threads)], "candidates"
    )


def _shown(rows: list[tuple[object, ...]], what: str) -> None:
    headers = ("network", "threads", what, "MACs", "ms", "times as fast", "load")
    if rows:
        print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".3f"), flush=True)


def _loaded(name: str) -> tuple[nn.Module, torch.Tensor]:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    return build().eval(), torch.randn(shape)


def _forms(name: str, threads: int, share: float) -> list[tuple[object, ...]]:
    model, example = _loaded(name)
    rank = max(1, round(share * 9 - 0.5))
    cp, separable = cs.CP(rank=cs.Share(share)), cs.DepthwiseSeparable(rank=rank)
    alone = (
        cp,
        separable,
        cs.Blueprint(rank=rank),
        cs.SpatialSeparable(rank=cs.Share(share)),
        cs.Tucker(rank=cs.Share(share)),
    )
    plans = {form.label: _plan(model, example, form) for form in alone}
    mixed = _strided(plans[cp.label], plans[separable.label])
    if mixed != plans[cp.label]:
        plans["CP, separable at a stride"] = mixed
    dense, found = cs.measure_whole(model, example, list(plans.values()), threads=threads, progress=False)
    load = f"{os.getloadavg()[0]:.1f}"
    rows: list[tuple[object, ...]] = [(name, threads, "dense", 1.0, dense, 1.0, load)]
    for (label, plan), ms in zip(plans.items(), found, strict=True):
        rows.append((name, threads, label, plan.macs_after / plan.cost.macs, ms, dense / ms, load))
    return rows


def _plan(model: nn.Module, example: torch.Tensor, form: cs.Form) -> cs.Plan:
    return cs.plan(model, example, forms=[form], policy=cs.min_channels(16), allow_growth=True)


def _strided(plan: cs.Plan, at_stride: cs.Plan) -> cs.Plan:
    """One plan, and another where a conv has a stride."""
    steps = [
        two if max(one.site.geometry.stride) > 1 else one for one, two in zip(plan.steps, at_stride.steps, strict=True)
    ]
    return cs.Plan(tuple(steps), plan.cost, plan.example)


def _least(name: str, threads: int) -> list[tuple[object, ...]]:
    model, example = _loaded(name)
    seen, rows = cs.capture(model, example), list[tuple[object, ...]]()
    table = cs.LatencyTable.measure(model, example, list(BUDGET_FORMS), threads=threads, progress=False)
    without = [form for form in BUDGET_FORMS if not isinstance(form, cs.LowRank)]
    for label, forms in (("with LowRank", list(BUDGET_FORMS)), ("without", without)):
        print(f"{name}, {threads} threads, {label}:", flush=True)
        rated = appraise(seen, forms, None, True, None, 0, progress=False)
        made = itertools.takewhile(bool, (within(rated, table, share) for share in STEPS))
        plans = {share: plan for share, plan in zip(STEPS, made, strict=False) if plan is not None}
        dense, found = cs.measure_whole(model, example, list(plans.values()), threads=threads, progress=False)
        for (share, plan), ms in zip(plans.items(), found, strict=True):
            promised, load = f"{label}, latency={share}", f"{os.getloadavg()[0]:.1f}"
            rows.append((name, threads, promised, plan.macs_after / plan.cost.macs, ms, dense / ms, load))
    return rows


if __name__ == "__main__":
    main()
