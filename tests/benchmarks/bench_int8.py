"""int8: plans against the quantised dense network, the accuracy of the files, and what each ingredient is worth.

    python tests/benchmarks/bench_int8.py speed [resnet18 resnet50 dncnn] [--threads 1 2] [--shares 0.3 0.35]
    python tests/benchmarks/bench_int8.py accuracy [resnet20 resnet56 dncnn vdsr] [--seeds 0 1 2] [--shares 0.8 0.7]
    python tests/benchmarks/bench_int8.py ingredients [resnet20 ...] [--seeds 0 1 2]
    python tests/benchmarks/bench_int8.py types [resnet18 resnet20]
    python tests/benchmarks/bench_int8.py files [names of bench_awkward.py]

`speed`: random weights. Plans by the energy of the weights within shares of the MACs and of the milliseconds of the
dense network, by the table of fp32 and by that of int8; each as its fp32 and its int8 file would be, timed whole in
turns with the dense network of the same precision, beside what the table promised. `int8 / dense int8` is the figure.
`accuracy`: every network planned within shares of the dense int8 milliseconds, calibrated as in `bench_calibrated.py`,
its metric in float and as int8 file, beside the dense network's. `ingredients`: error of the int8 file against its own
float file and its metric, with CP at 0.35 of the MACs and with separable branches of rank 2: none, each by itself, all.
`types`: the runtime's time for unsigned and signed values, seven bits, one scale per tensor.
`files`: twelve shapes converted by default in int8 and exported: the file that is recommended, against dense int8, in
turns again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import ModelProto
from tabulate import tabulate
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.calibration.dataset import Calibration, read
from convsurgeon.distill.reconstruct import OutputJudge
from convsurgeon.forms.catalogue import BUDGET_FORMS
from convsurgeon.int8.equalise import equalise
from convsurgeon.int8.feeds import feeds_of
from convsurgeon.int8.merge_sums import join
from convsurgeon.int8.module import IMAGES, Int8Module, as_int8
from convsurgeon.int8.pipeline import lower
from convsurgeon.int8.qdq import rounded
from convsurgeon.int8.ranges import found, nominal
from convsurgeon.onnx.exporter import exported_graph
from convsurgeon.onnxnet.session import session_options
from convsurgeon.search.choice import predicted, problem
from convsurgeon.search.trial import appraise, best_plan, opened, rate
from tests import networks
from tests.benchmarks.bench_awkward import NETWORKS, images_of
from tests.benchmarks.bench_calibrated import CASES
from tests.benchmarks.bench_equal_accuracy import TIMED
from tests.networks import pretrained

SPEED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: networks.import_torchvision().models.resnet18(), (1, 3, 224, 224)),
    "resnet50": (lambda: networks.import_torchvision().models.resnet50(), (1, 3, 224, 224)),
    "dncnn": (networks.dncnn, (1, 1, 256, 256)),
    "resnet20": (lambda: networks.cifar_resnet(20), (1, 3, 32, 32)),
}
PRECISIONS: tuple[Any, ...] = ("fp32", "int8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("speed", "accuracy", "ingredients", "types", "files"))
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--shares", type=float, nargs="+", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--images", type=int, default=1024, help="calibration images at most")
    parser.add_argument("--forms", nargs="+", default=["dense", "cp", "separable"], help="of the ingredients")
    parser.add_argument("--by", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="tables to plan by")
    parser.add_argument("--cache", help="folder of latency tables; the user's if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f}")
    {"speed": _speed, "accuracy": _accuracy, "ingredients": _ingredients, "types": _types, "files": _files}[
        options.part
    ](options)


def _show(rows: list[tuple[Any, ...]], headers: tuple[str, ...]) -> None:
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".3f"), flush=True)


# Speed


def _speed(options: argparse.Namespace) -> None:
    headers = ("network", "threads", "plan", "MACs", "fp32 x", "int8 x fp32", "int8 / dense int8", "promised", "off")
    for name in options.networks or ["resnet18"]:
        for threads in options.threads:
            _show(list(_speeds(name, threads, options)), headers)


def _speeds(name: str, threads: int, options: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    """A row per plan: the network as it is and in both precisions, and what the table of int8 promised."""
    build, shape = SPEED[name]
    torch.manual_seed(0)
    model, example = build().eval(), torch.randn(shape)
    how = {"threads": threads, "passes": options.passes, "cache": options.cache, "progress": False}
    tables = {kind: cs.LatencyTable.measure(model, example, BUDGET_FORMS, precision=kind, **how) for kind in PRECISIONS}
    rated = appraise(cs.capture(model, example), BUDGET_FORMS, None, True, None, 0, progress=False)
    plans: dict[str, cs.Plan] = {}
    for share in options.shares or [0.3, 0.35]:
        for kind, table in tables.items():
            # milliseconds decide what pays: of a budget of MACs beside one of them that never binds
            budgets = {f"macs={share}": {"macs": share, "latency": "faster"}, f"latency={share + 0.15:g}": {}}
            for label, limits in budgets.items():
                budget = cs.Budget(**(limits or {"latency": share + 0.15}), precision=kind)
                task = problem(rated.seen, rated.base, rated.options, budget, table)
                try:
                    plans[f"{label} by {kind}"] = task.plan(rated.measures["weights"])
                except cs.BudgetError as error:
                    print(f"{name}, {kind}: {error}")
    whole = {"threads": threads, "passes": options.passes, "progress": False}
    times = {
        kind: cs.measure_whole(model, example, list(plans.values()), precision=kind, **whole) for kind in PRECISIONS
    }
    dense = {kind: ms for kind, (ms, _) in times.items()}
    yield name, threads, "dense", 1.0, 1.0, dense["fp32"] / dense["int8"], 1.0, 1.0, "-"
    for number, (label, plan) in enumerate(plans.items()):
        each = {kind: found_ms[number] for kind, (_, found_ms) in times.items()}
        promised = tables["int8"].total_ms / predicted(tables["int8"], plan)
        measured = dense["int8"] / each["int8"]
        faster = (dense["fp32"] / each["fp32"], dense["fp32"] / each["int8"], measured, promised)
        yield name, threads, label, plan.macs_after / plan.cost.macs, *faster, f"{measured / promised - 1:+.1%}"


# Accuracy


def _accuracy(options: argparse.Namespace) -> None:
    headers = ("network", "seed", "plan", "MACs", "x dense int8", "x dense fp32", "float", "int8", "lost", "seconds")
    for name in options.networks or ["resnet20"]:
        rows = [row for seed in options.seeds for row in _accuracies(name, seed, options)]
        _show(rows, headers)


def _accuracies(name: str, seed: int, options: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    case, model, timed = CASES[name], pretrained(name), torch.zeros(TIMED[name])
    images = case.images(seed)[: options.images]
    how = {"passes": options.passes, "cache": options.cache, "progress": False, "threads": options.threads[0]}
    tables = {kind: cs.LatencyTable.measure(model, timed, BUDGET_FORMS, precision=kind, **how) for kind in PRECISIONS}
    dense_gain = tables["fp32"].total_ms / tables["int8"].total_ms
    data = read(images, cs.capture(model, timed).example, len(images))
    exact, rough = case.metric(model), case.metric(as_int8(model, data.fitted))
    yield name, seed, "dense", 1.0, 1.0, dense_gain, exact, rough, exact - rough, 0.0
    for kind in options.by:
        table, seen = tables[kind], cs.capture(model, timed)
        rated = rate(opened(seen, BUDGET_FORMS, None, True).paying(table), data, seed, False, kind)
        for share in sorted(options.shares or [0.8, 0.65], reverse=True):
            started = time.perf_counter()
            try:
                best = best_plan(rated, cs.Budget(latency=share, precision=kind), table)
            except cs.BudgetError as error:
                print(f"{name}, {kind}: {error}", flush=True)
                break
            result = cs.carry_out(model, best.plan, timed, calibration=images, seed=seed, progress=False)
            exact, rough = case.metric(result.model), case.metric(as_int8(result.model, data.fitted))
            over = tables["int8"].total_ms / _int8_ms(model, timed, best.plan, tables["int8"], options)
            macs, seconds = best.plan.macs_after / best.plan.cost.macs, time.perf_counter() - started
            label = f"latency={share:g} by {kind}"
            yield name, seed, label, macs, over, over * dense_gain, exact, rough, exact - rough, seconds


def _int8_ms(
    model: nn.Module, timed: torch.Tensor, plan: cs.Plan, table: cs.LatencyTable, options: argparse.Namespace
) -> float:
    """The whole network of a plan in int8, scaled to the table."""
    how: dict[str, Any] = {"threads": options.threads[0], "passes": options.passes, "progress": False}
    dense_ms, (ms,) = cs.measure_whole(model, timed, [plan], precision="int8", **how)
    return ms * table.total_ms / dense_ms


# Ingredients


def _ingredients(options: argparse.Namespace) -> None:
    headers = ("network", "seed", "form", "ingredients", "error", "float", "int8", "lost")
    forms: dict[str, list[cs.Form]] = {
        "dense": [],
        "cp": [cs.CP(rank=cs.Share(0.35)), cs.DepthwiseSeparable(rank=2)],
        "separable": [cs.DepthwiseSeparable(rank=2)],
    }
    for name in options.networks or ["resnet20"]:
        rows = []
        for seed in options.seeds:
            for label, chosen in ((label, forms[label]) for label in options.forms):
                rows += [(name, seed, label, *row) for row in _ingredient_rows(name, seed, chosen, options.images)]
        _show(rows, headers)


def _ingredient_rows(name: str, seed: int, forms: list[cs.Form], count: int) -> Iterator[tuple[Any, ...]]:
    case, model = CASES[name], pretrained(name)
    images = case.images(seed)[:count]
    if forms:
        model = cs.convert(model, images[:1], forms=forms, calibration=images, seed=seed, progress=False).model
    data = read(images, cs.capture(model, images[:1]).example, len(images))
    exact, judge = case.metric(model), OutputJudge(model, data.held_back)
    for label, joined, evened, fitted in (
        ("none", False, False, False),
        ("sums joined", True, False, False),
        ("evened out", False, True, False),
        ("weights fitted", False, False, True),
        ("evened out, weights fitted", False, True, True),
        ("all", True, True, True),
    ):
        module = _with(model, data, joined, evened, fitted)
        rough = case.metric(module)
        yield label, f"{judge.error(module):.5f}", exact, rough, exact - rough


def _with(model: nn.Module, data: Calibration, joined: bool, evened: bool, fitted: bool) -> Int8Module:
    """`as_int8` with some of its steps."""
    batch = data.fitted[0].tensors()[0][:16]
    graph = exported_graph(model, batch)
    (name,) = (info.name for info in graph.graph.input)
    feeds = feeds_of(graph, [{name: one.tensors()[0].numpy()} for one in data.fitted])[: IMAGES // len(batch)]
    if joined:
        join(graph.graph)
    if evened:
        equalise(graph, feeds)
    ranges = found(graph, feeds, "percentile")
    return Int8Module(lower(graph, ranges, feeds, cs.Target.onnxruntime(), fitted=fitted), model)


# Types


def _types(options: argparse.Namespace) -> None:
    targets = {
        "unsigned, per channel": cs.Target(),
        "signed": cs.Target(activations="int8"),
        "signed, symmetric": cs.Target(activations="int8", symmetric=True),
        "seven bits": cs.Target(reduce_range=True),
        "per tensor": cs.Target(per_channel=False),
    }
    rows = []
    for name in options.networks or ["resnet18"]:
        build, shape = SPEED[name]
        torch.manual_seed(0)
        model, example = build().eval(), torch.randn(shape)
        for form, changed in {
            "dense": model,
            "cp 0.3": cs.convert(model, example, forms=[cs.CP(rank=cs.Share(0.3))], calibration=False).model,
        }.items():
            graph = exported_graph(changed, example)
            graphs = {"fp32": graph} | {
                label: rounded(graph, nominal(graph), target) for label, target in targets.items()
            }
            for threads in options.threads:
                times = _turns(graphs, shape, threads)
                rows += [(name, form, threads, label, ms, times["fp32"] / ms) for label, ms in times.items()]
    _show(rows, ("network", "form", "threads", "types", "ms", "x fp32"))


def _turns(graphs: dict[str, ModelProto], shape: tuple[int, ...], threads: int, rounds: int = 60) -> dict[str, float]:
    """Milliseconds of graphs that take turns, the mean over the fastest quarter."""
    sessions = {
        label: ort.InferenceSession(graph.SerializeToString(), session_options(threads, "all"))
        for label, graph in graphs.items()
    }
    feed = {graphs["fp32"].graph.input[0].name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    times: dict[str, list[float]] = {label: [] for label in sessions}
    for turn in range(rounds):
        for label, session in list(sessions.items())[:: 1 if turn % 2 else -1]:
            started = time.perf_counter()
            session.run(None, feed)
            times[label].append(1e3 * (time.perf_counter() - started))
    return {label: float(np.mean(sorted(values)[: rounds // 4])) for label, values in times.items()}


# Files


def _files(options: argparse.Namespace) -> None:
    rows = []
    warnings.filterwarnings("ignore", message="calibration: .* are few")
    for name in options.networks or list(NETWORKS):
        build, size = NETWORKS[name]
        torch.manual_seed(options.seeds[0])
        model, example, images = build().eval(), torch.zeros(1, 3, *size), images_of(name)
        with tempfile.TemporaryDirectory() as folder:
            result = cs.convert(model, example, calibration=images, within=0.3, precision="int8", progress=False)
            bundle = cs.export(
                result, Path(folder) / "out", calibration=images, pairs=50, threads=options.threads, progress=False
            )
            one = bundle.recommended
            assert one is not None
            again = cs.timing.compare(
                bundle.folder / "original-int8.onnx", bundle.folder / one.name, threads=one.threads, level=one.level,
                progress=False)  # fmt: skip
            size = onnx.load(bundle.folder / one.name).ByteSize() / 1e6
        figures = (one.speedup, one.over_dense_int8, again.speedup, str(again.verdict))
        rows.append((name, one.name, size, one.threads, one.level, *figures))
        print(rows[-1], flush=True)
    _show(rows, ("network", "file", "MB", "threads", "level", "x original", "x dense int8", "again", "verdict"))


if __name__ == "__main__":
    main()
