"""How fast is each form in onnxruntime at like MACs, and do the latency table's milliseconds add up to whole networks?

Random weights: only time counts. Every conv of 16 channels or more takes the form, with about `--share` of its MACs.
`promised` is what the table predicts, of `mix` plans too, in which every conv is dense or in one of the measured forms,
all equally likely. `--kinds` shows where the time of a network goes: milliseconds and speed of every kind of conv.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.runtime.latencies import predict
from convsurgeon.timing.node_macs import count_macs
from tests.benchmarks.cases import SHAPES, add_networks, random_network
from tests.benchmarks.runner import Row


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add which networks, how small, and how many mixes."""
    add_networks(parser, list(SHAPES), ["resnet20", "resnet18", "dncnn"])
    parser.add_argument("--share", type=float, default=0.3, help="of every conv's MACs")
    parser.add_argument("--mixes", type=int, default=4)
    parser.add_argument("--kinds", action="store_true", help="one row for every kind of conv as well")


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each network and plan."""
    rank = max(1, round(options.share * 9 - 0.5))
    share = cs.Share(options.share)
    forms: list[cs.Form] = [cs.CP(rank=share), cs.DepthwiseSeparable(rank=rank), cs.Blueprint(rank=rank)]
    for name in options.networks:
        yield from _rows(name, forms, options)


def _rows(name: str, forms: list[cs.Form], options: argparse.Namespace) -> Iterator[Row]:
    model, example = random_network(name)
    seen, policy = cs.capture(model, example), cs.select.min_channels(16)
    runtime = cs.Runtime(threads=options.threads)
    table: Any = runtime.measure(seen, forms, policy, progress=False)
    alone = {form.label: cs.plan(model, example, forms=[form], policy=policy) for form in forms}
    mixes = {f"mix {seed}": mix(list(alone.values()), table, seed) for seed in range(options.mixes)}
    plans = {"dense": mix(list(alone.values()), None, 0), **alone, **mixes}
    for label, plan in plans.items():
        (found,) = table.time(seen, [plan], progress=False)
        promised, measured = table.total_ms / predict(table, plan), table.total_ms / found.total_ms
        yield {
            "network": name,
            "plan": label,
            "MACs": plan.macs_after / plan.cost.macs,
            "ms": found.total_ms,
            "times as fast": measured,
            "promised": promised,
            "off by": f"{measured / promised - 1:+.1%}",
        }
        if options.kinds:
            yield from (
                {"network": name, "plan": label} | row for row in _kinds(cs.rebuild(model, plan), example, options)
            )


def mix(plans: list[cs.Plan], table: Any, seed: int) -> cs.Plan:
    """Return a plan in which every conv is dense or in one of the forms that were measured for it, if any were."""
    draw, first = random.Random(seed), plans[0]
    steps = []
    for several in zip(*(plan.steps for plan in plans), strict=True):
        changes = [step for step in several if isinstance(step, cs.Change)]
        known = [step for step in changes if table is not None and table.has(step.name, step.form)]
        steps.append(draw.choice([*known, cs.Skip(several[0].site, "dense here")]))
    return cs.Plan(tuple(steps), first.cost, first.example)


def _kinds(model: nn.Module, example: Tensor, options: argparse.Namespace) -> Iterator[Row]:
    """Yield milliseconds and speed of depthwise, pointwise and dense convs, and of everything else."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        cs.onnx.export(model, example, file)
        found, macs, graph = (
            cs.timing.profile(file, threads=options.threads),
            count_macs(file).by_node,
            onnx.load(file).graph,
        )
    weights = {one.name: tuple(one.dims) for one in graph.initializer}
    kinds = {node.name: _kind(weights[node.input[1]]) for node in graph.node if node.op_type == "Conv"}
    totals: dict[str, list[float]] = {}
    for node in found.nodes:
        total = totals.setdefault(kinds.get(node.name, "everything else"), [0, 0.0, 0.0])
        for place, value in enumerate((1, node.ms, macs.get(node.name) or 0)):
            total[place] += value
    for kind, (count, ms, total_macs) in totals.items():
        yield {"kind": f"{count} {kind}", "ms": ms, "GMAC/s": total_macs / ms / 1e6}


def _kind(weight: tuple[int, ...]) -> str:
    if weight[1] == 1 and weight[0] > 1:
        return "depthwise"
    return "pointwise" if set(weight[2:]) == {1} else "dense"
