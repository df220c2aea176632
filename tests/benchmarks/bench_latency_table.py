"""How well latencies of layers, measured in networks of one form, add up to networks of many.

    python tests/benchmarks/bench_latency_table.py [resnet20 resnet18 ...] [--mixes 8] [--threads 1]

For each network: seconds to measure the table cold and to read it from the cache, then random mixes (every conv dense
or in one of the forms that fit it, all equally likely), each predicted from the table and measured as a whole.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from tests import networks

FORMS: list[cs.Form] = [
    *(kind(rank=rank) for kind in (cs.DepthwiseSeparable, cs.Blueprint) for rank in (1, 2, 3, 4)),
    *(cs.SpatialSeparable(rank=cs.Share(share)) for share in (0.25, 0.33, 0.5, 0.66)),
]
"""Three forms, four ranks."""

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: networks.import_torchvision().models.resnet18(), (1, 3, 224, 224)),
    "resnet50": (lambda: networks.import_torchvision().models.resnet50(), (1, 3, 224, 224)),
    "resnet20": (lambda: networks.cifar_resnet(20), (1, 3, 32, 32)),
    "dncnn": (networks.dncnn, (1, 1, 256, 256)),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--mixes", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row(name, options.mixes, options.threads) for name in options.networks]
    headers = ("network", "dense ms", "cold s", "cached s", "mixes", "error mean", "error worst", "bias", "flagged")
    print(f"seed 0, {options.mixes} mixes each, threads {options.threads}, {len(FORMS)} forms and ranks")
    print(tabulate(rows, headers))


def row(name: str, mixes: int, threads: int) -> tuple[object, ...]:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, example = build().eval(), torch.randn(shape)
    with tempfile.TemporaryDirectory() as cache:
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            table = cs.LatencyTable.measure(model, example, FORMS, threads=threads, cache=cache)
            seconds.append(time.perf_counter() - started)
    plans = [mix(model, example, table, seed) for seed in range(mixes)]
    dense_ms, found = cs.measure_whole(model, example, plans, threads=threads)
    # shares of the dense time: the machine may have been busier in one of the two measurements
    errors = [table.predict(plan) / table.total_ms / (ms / dense_ms) - 1 for plan, ms in zip(plans, found, strict=True)]
    for plan, ms, error in zip(plans, found, errors, strict=True):
        print(f"{name}: predicted {table.predict(plan):.3f} ms, measured {ms:.3f} (dense {dense_ms:.3f}), {error:+.1%}")
    sizes = [abs(error) for error in errors]
    flagged = sum(bool(one.flags) for one in table.rows)
    shown = (statistics.mean(sizes), max(sizes), statistics.mean(errors))
    return name, table.total_ms, *seconds, mixes, *(f"{value:.1%}" for value in shown), flagged


def mix(model: nn.Module, example: torch.Tensor, table: cs.LatencyTable, seed: int) -> cs.Plan:
    """A plan with every conv dense or in one of the forms that were measured for it."""
    draw = random.Random(seed)
    base = cs.plan(model, example, forms=FORMS)
    steps: list[cs.Change | cs.Skip] = []
    for step in base.steps:
        forms = [row.form for row in table.rows if row.site == step.name]
        form = draw.choice(forms) if isinstance(step, cs.Change) else None
        if form is None:
            steps.append(cs.Skip(step.site, "dense in this mix"))
        else:
            steps.append(cs.Change(step.site, form, None, 0, 0))  # only the time matters here
    return cs.Plan(tuple(steps), base.cost, base.example)


if __name__ == "__main__":
    main()
