"""How well latencies of layers, measured in networks of one form, add up to networks of many; what plans make of it.

    python tests/benchmarks/bench_latency_table.py [resnet20 resnet18 ...] [--mixes 8] [--threads 1] [--budget]

For each network: seconds to plan within a latency with nothing measured, from the cache, and with the table at hand
(`cpu`: of this process, which on a busy machine is nearer to what a calm one takes); then whole networks, each
predicted from the table and measured: random mixes (every conv dense or in one of the forms that fit it, all equally
likely), one rank or share everywhere, and plans within latencies. `rest` is the share of the dense network's time
that is in no conv that may change, such as reading the weights of linear layers; `of the convs' ratio` leaves it and
its MACs out: the speed-up of the convs that may change over the ratio of their MACs. Weights are random: only time
counts. A plan with a form that was not worth timing has no prediction.
"""

from __future__ import annotations

import argparse
import math
import os
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
from convsurgeon.forms.catalogue import BUDGET_FORMS
from convsurgeon.planning.candidates import plan_captured
from convsurgeon.search.choice import predicted, problem
from convsurgeon.search.trial import Appraised, appraise
from tests import networks

FORMS: list[cs.Form] = [
    *(kind(rank=rank) for kind in (cs.DepthwiseSeparable, cs.Blueprint) for rank in (1, 2, 3, 4)),
    *(cs.SpatialSeparable(rank=cs.Share(share)) for share in (0.25, 0.33, 0.5, 0.66)),
]
"""Three forms, four ranks."""

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (lambda: networks.cifar_resnet(20), (1, 3, 32, 32)),
    "resnet18": (lambda: networks.import_torchvision().models.resnet18(), (1, 3, 224, 224)),
    "resnet50": (lambda: networks.import_torchvision().models.resnet50(), (1, 3, 224, 224)),
    "vgg16": (lambda: networks.import_torchvision().models.vgg16(), (1, 3, 224, 224)),
    "dncnn": (networks.dncnn, (1, 1, 256, 256)),
}
LATENCIES = (0.5, 0.35)
UNIFORM: tuple[cs.Form, ...] = (
    *(cs.DepthwiseSeparable(rank=rank) for rank in (1, 4)),
    *(cs.SpatialSeparable(rank=cs.Share(share)) for share in (0.25, 0.5)),
    *(cs.CP(rank=cs.Share(share)) for share in (0.18, 0.39)),
)
"""Of the candidates those that are also tried everywhere at once."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--mixes", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", help="keep the tables here; without it every run starts cold")
    parser.add_argument(
        "--budget", action="store_true", help="the candidates of a budget, CP among them, in their place"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"seed 0, {options.mixes} mixes each, threads {options.threads}")
    if options.budget:
        FORMS[:] = BUDGET_FORMS
    rows = [_network(name, options.mixes, options.threads, options.cache) for name in options.networks]
    times = ("cold s", "cpu", "cached s", "cpu", "plan s", "dense ms", "rest")
    print(tabulate(rows, ("network", *times, "error mean", "error worst", "bias", "load"), tablefmt="pipe"))


def _network(name: str, mixes: int, threads: int, cache: str | None) -> tuple[object, ...]:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, example = build().eval(), torch.randn(shape)
    with tempfile.TemporaryDirectory() as fresh:
        seconds = []
        for _ in range(2):
            started, worked = time.perf_counter(), time.process_time()
            table = cs.LatencyTable.measure(
                model, example, FORMS, threads=threads, cache=cache or fresh, progress=False
            )
            rated = appraise(cs.capture(model, example), FORMS, None, True, None, 0, progress=False)
            within(rated, table, 0.5)
            seconds += [time.perf_counter() - started, time.process_time() - worked]
    started = time.perf_counter()
    within(rated, table, 0.5)
    seconds.append(time.perf_counter() - started)
    plans = {f"mix {seed}": _mix(rated, table, seed) for seed in range(mixes)}
    plans |= {form.label: _uniform(rated, form) for form in FORMS if form in UNIFORM}
    plans |= {f"latency {share}": plan for share in LATENCIES if (plan := within(rated, table, share)) is not None}
    dense_ms, found = cs.measure_whole(model, example, list(plans.values()), threads=threads, progress=False)
    # shares of the dense time: the machine may have been busier in one of the two measurements
    rows = [
        _row(name, label, plan, rated, table, ms / dense_ms)
        for (label, plan), ms in zip(plans.items(), found, strict=True)
    ]
    shown = ("MACs", "predicted", "measured", "off", "speed-up", "of MAC ratio", "of the convs' ratio", "slower layers")
    print(tabulate(rows, ("network", "plan", *shown), tablefmt="pipe", floatfmt=".3f"), flush=True)
    pairs = [
        (predicted(table, plan) / table.total_ms, ms / dense_ms) for plan, ms in zip(plans.values(), found, strict=True)
    ]
    errors = [promised / share - 1 for promised, share in pairs if math.isfinite(promised)]
    sizes = [abs(error) for error in errors]
    percent = (f"{value:+.1%}" for value in (statistics.mean(sizes), max(sizes), statistics.mean(errors)))
    times = (*(round(one, 2) for one in seconds), round(table.total_ms, 3), f"{_rest(rated, table):.0%}")
    return (name, *times, *percent, f"{os.getloadavg()[0]:.1f}")


def _row(
    name: str, label: str, plan: cs.Plan, rated: Appraised, table: cs.LatencyTable, share: float
) -> tuple[object, ...]:
    macs, promised = plan.macs_after / plan.cost.macs, predicted(table, plan) / table.total_ms
    known = [one for one in plan.changes.values() if table.has(one.name, one.form)]
    slower = sum(table.ms(one.name, one.form) > table.ms(one.name, None) for one in known)
    fixed = plan.cost.macs - sum(changes[0].macs_before for changes in rated.options.values())
    rest = _rest(rated, table)
    convs = (plan.macs_after - fixed) / (plan.cost.macs - fixed) * (1 - rest) / (share - rest)
    off = f"{promised / share - 1:+.1%}"
    return name, label, macs, promised, share, off, 1 / share, macs / share, convs, slower


def _rest(rated: Appraised, table: cs.LatencyTable) -> float:
    """Share of the dense time that is in no conv that may change."""
    return 1 - sum(table.ms(name, None) for name in rated.options) / table.total_ms


def within(rated: Appraised, table: cs.LatencyTable, share: float) -> cs.Plan | None:
    """The plan by the energy of the weights, not yet confirmed by timing it; None where it cannot be reached."""
    task = problem(rated.seen, rated.base, rated.options, cs.Budget(latency=share), table)
    try:
        return task.plan(rated.measures["weights"])
    except cs.BudgetError as error:
        print(error)
        return None


def _uniform(rated: Appraised, form: cs.Form) -> cs.Plan:
    return plan_captured(rated.seen, [form], None, allow_growth=False)


def _mix(rated: Appraised, table: cs.LatencyTable, seed: int) -> cs.Plan:
    """Every conv dense or in one of the forms that were measured for it."""
    draw = random.Random(seed)
    return _made(rated, lambda changes: draw.choice([None, *(one for one in changes if table.has(one.name, one.form))]))


def _made(rated: Appraised, choice: Callable[[list[cs.Change]], cs.Change | None]) -> cs.Plan:
    taken = {name: choice(changes) for name, changes in rated.options.items()}
    steps = [taken.get(step.name) or cs.Skip(step.site, "dense here") for step in rated.base.steps]
    return cs.Plan(tuple(steps), rated.base.cost, rated.base.example)


if __name__ == "__main__":
    main()
