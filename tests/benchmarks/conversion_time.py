"""How long does a conversion take and how much memory, beside a copy of the model, its forward passes, and its export?

`rewrite`: plan, surgery and rebuild beside `copy.deepcopy`, in turns. `memory`: peak above what stood before, each in a
fresh process. `growth`: milliseconds a conv over chains of residual blocks; level means that nothing is quadratic.
`fit`: a calibrated conversion and its bundle, in seconds of a processor, and in forward passes of the original over the
same images. Weights are random but for ResNet-20.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.planning.surgery import operate
from tests.benchmarks.awkward import UNet
from tests.benchmarks.cases import CASES, random_network
from tests.benchmarks.measure import Task, in_fresh_process, in_turns, memory_mb, paired_ratio
from tests.benchmarks.runner import Row

TIMES_A_COPY = 3.0
"""The surgery may take this many times a copy of the model ..."""
EXTRA_MB = 64.0
"""... and a copy of it in memory and this much more."""


class Block(nn.Module):
    """A 3x3 conv of 16 channels around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the parts, and what they are of."""
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--networks", nargs="+", default=["resnet50", "vgg16"], help="of rewrite and memory")
    parser.add_argument("--convs", nargs="+", type=int, default=[50, 200, 800, 2000], help="of growth")
    parser.add_argument("--fitted", nargs="+", default=["resnet20", "unet", "resnet18"], help="networks of fit")
    parser.add_argument("--goals", nargs="+", default=["default", "macs"], choices=list(GOALS), help="of fit")
    parser.add_argument("--rounds", type=int, default=5)


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of every part."""
    for part in options.parts:
        yield from ({"part": part} | row for row in PARTS[part](options))


def finish(_options: argparse.Namespace, rows: Sequence[Row]) -> int:
    """Print each row that misses its target; return 1 if there is one."""
    slow = [
        row for row in rows if row["part"] == "rewrite" and row["task"] == "operate" and row["ratio"] > TIMES_A_COPY
    ]
    big = [row for row in rows if row["part"] == "memory" and row["peak MB"] > row["model MB"] + EXTRA_MB]
    for row in slow + big:
        print(f"missed: {row}")
    return int(bool(slow + big))


def _rank_one(model: nn.Module, example: Tensor) -> cs.Plan:
    return cs.plan(model, example, forms=[cs.DepthwiseSeparable(rank=1)], policy=cs.select.kernel_size(3))


def _tasks(model: nn.Module, example: Tensor) -> dict[str, Task]:
    plan = _rank_one(model, example)
    return {
        "deepcopy": partial(copy.deepcopy, model),
        "plan": partial(_rank_one, model, example),
        "operate": partial(operate, model, plan, example),
        "rebuild": partial(cs.rebuild, model, plan),
    }


def _rewrite(options: argparse.Namespace) -> Iterator[Row]:
    for name in options.networks:
        tasks = _tasks(*random_network(name))
        times = in_turns(tasks, options.rounds)
        for task, each in times.items():
            row = {"network": name, "task": task, "ms": 1e3 * statistics.median(each)}
            yield row | paired_ratio(each, times["deepcopy"])


def _memory(options: argparse.Namespace) -> Iterator[Row]:
    for name in options.networks:
        for task in ("deepcopy", "plan", "operate", "rebuild"):
            peaks = [in_fresh_process(extra_mb, name, task) for _ in range(3)]
            size = sum(tensor.nbytes for tensor in random_network(name)[0].state_dict().values()) / 1e6
            yield {"network": name, "task": task, "model MB": size, "peak MB": statistics.median(peaks)}


def extra_mb(name: str, task: str) -> float:
    """Return the peak of one task above what is resident just before it."""
    small = nn.Sequential(Block(), Block()).eval()
    for warm in _tasks(small, torch.randn(1, 16, 8, 8)).values():  # imports, thread pools
        warm()
    tasks = _tasks(*random_network(name))
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = memory_mb("VmRSS")
    result = tasks[task]()
    extra = memory_mb("VmHWM") - before
    del result
    return extra


def _growth(options: argparse.Namespace) -> Iterator[Row]:
    example = torch.randn(1, 16, 8, 8)
    for count in options.convs:
        model = nn.Sequential(*(Block() for _ in range(count))).eval()
        times = in_turns(_tasks(model, example), 3)
        yield {"network": f"{count} convs"} | {
            f"{task}, ms a conv": 1e3 * statistics.median(each) / count for task, each in times.items()
        }


def _fit(options: argparse.Namespace) -> Iterator[Row]:
    for name in options.fitted:
        for goal in options.goals:
            yield in_fresh_process(fit_row, name, goal, options.threads)


def fit_row(name: str, goal: str, threads: int) -> Row:
    """Return what a conversion and the export of its bundle take of a processor, beside forward passes; and memory."""
    torch.set_num_threads(threads)
    if name in CASES:
        model, images = CASES[name].model(), CASES[name].images(0)
    elif name == "unet":
        model, images = UNet().eval(), torch.randn(20, 3, 512, 512)
    else:
        model, example = random_network(name)
        images = torch.randn(64, *example.shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONVSURGEON_CACHE"] = folder
        before_mb, forward = memory_mb("VmRSS"), min(_processor(partial(_forward, model, images))[0] for _ in range(2))
        convert = partial(cs.convert, model, images[:1], calibration=images, progress=False, **GOALS[goal])
        seconds, result = _processor(convert)
        peak_mb = memory_mb("VmHWM") - before_mb
        export = partial(cs.export, result, Path(folder) / "bundle", progress=False)
        row = {"network": name, "goal": goal, "forward s": forward, "convert s": seconds, "passes": seconds / forward}
        row |= {"export s": _processor(export)[0], "peak MB above the start": peak_mb}
        if name in CASES:
            row |= {"before": CASES[name].metric(model), "after": CASES[name].metric(result.model)}
        return row | {"trials": len(result.trials), "changed": len(result.changes), "speed": result.report.speed}


GOALS: dict[str, dict[str, Any]] = {
    "default": {},
    "macs": {"goal": cs.Budget(macs=0.3)},
    "by hand": {"forms": [cs.CP(rank=cs.Share(0.3))]},
}


def _processor(task: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a processor that a task takes, and what it returns."""
    started = time.process_time()
    found = task()
    return time.process_time() - started, found


def _forward(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        for batch in images.split(64):
            model(batch)


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "rewrite": _rewrite,
    "memory": _memory,
    "growth": _growth,
    "fit": _fit,
}
