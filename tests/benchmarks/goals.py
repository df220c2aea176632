"""What do pretrained networks keep and gain under a goal: a budget of MACs or milliseconds, or a tolerance?

Unlabelled images, no training. `metric` is of the network as the file that ships computes it (`--precision`), `times as
fast` of its file against the original's in the same precision, in turns. `equal` says whether the loss is within the
tolerance: a point of top-1, or 0.2 dB.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import convsurgeon as cs
from tests.benchmarks.cases import CASES, Case, add_networks, add_seeds
from tests.benchmarks.measure import compare_files, deployed, saving
from tests.benchmarks.runner import Row


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what is asked of which networks."""
    add_networks(parser, list(CASES), ["resnet20"])
    add_seeds(parser)
    parser.add_argument("--macs", type=float, nargs="*", default=[0.3], help="shares of the MACs")
    parser.add_argument("--latency", type=float, nargs="*", default=[0.5], help="shares of the milliseconds")
    parser.add_argument("--without", nargs="*", default=[], choices=["default", "within"], help="goals to leave out")
    parser.add_argument("--precision", choices=["fp32", "int8"], default="fp32")


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each network, seed and goal."""
    for name in options.networks:
        for seed in options.seeds:
            for label, goal in _goals(CASES[name], options).items():
                yield {"network": name, "seed": seed, "goal": label} | _row(CASES[name], goal, seed, options)


def _goals(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    goals: dict[str, Any] = {"default": None, "within": cs.Within(case.tolerance, metric=case.metric)}
    goals = {label: goal for label, goal in goals.items() if label not in options.without}
    goals |= {f"macs={share}": cs.Budget(macs=share) for share in options.macs}
    return goals | {f"latency={share}": cs.Budget(latency=share) for share in options.latency}


def _row(case: Case, goal: Any, seed: int, options: argparse.Namespace) -> Row:
    model, images = case.model(), case.images(seed)
    runtime = cs.Runtime(threads=options.threads, precision=options.precision)
    started = time.perf_counter()
    try:
        result = cs.convert(
            model, case.example, calibration=images, goal=goal, runtime=runtime, seed=seed, progress=False
        )
    except cs.errors.BudgetError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - started
    dense, metric = (case.metric(deployed(runtime, one, images)) for one in (model, result.model))
    kept = {"dense": dense, "metric": metric, "equal": metric >= dense - case.tolerance, "seconds": round(seconds)}
    return saving(result) | kept | _faster(result, images, options)


def _faster(result: cs.Result, images: Any, options: argparse.Namespace) -> Row:
    int8 = options.precision == "int8"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out"
        cs.export(result, folder, int8=int8, calibration=images, pairs=0, progress=False)
        names = ("original-int8.onnx", "model-int8.onnx") if int8 else ("original.onnx", "model.onnx")
        return compare_files(*(folder / name for name in names), threads=options.threads)
