"""How long does a conversion take and how much memory, beside a copy of the model, its forward passes, and its export?

`rewrite`: plan, surgery and rebuild beside `copy.deepcopy`, in turns. `memory`: peak above what stood before, each in a
fresh process. `growth`: milliseconds a conv over chains of residual blocks; level means that nothing is quadratic.
`table`: a latency table of such a chain. `fit`: a calibrated conversion and its bundle, in seconds of a processor, in
all and by stage, and in forward passes of the original over the same images; of pretrained networks also what they
keep. The others have random weights and images. A goal is `default`, `by hand` (CP everywhere), a budget, or a limit
such as `minutes=1`.
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
from convsurgeon.forms.catalogue import BUDGET_FORMS
from convsurgeon.planning.layers_as_convs import capture_as_convs
from convsurgeon.planning.surgery import operate
from tests.benchmarks.cases import CASES, random_network
from tests.benchmarks.measure import Task, in_fresh_process, in_turns, memory_mb, paired_ratio, processor_seconds
from tests.benchmarks.runner import Row
from tests.benchmarks.stages import watched
from tests.benchmarks.subjects import SUBJECTS, Subject

TIMES_A_COPY = 3.0
"""The surgery may take this many times a copy of the model ..."""
EXTRA_MB = 64.0
"""... and a copy of it in memory and this much more."""
FITTED = [
    *("resnet20:default:0", "resnet20:default:1", "resnet20:default:2", "squeezenet:default", "unet:default"),
    *("resnet18:default", "vgg16:default", "craft:default", "unet 31m at 512:default", "unet 31m at 1024:default"),
    *("resnet20:by hand", "resnet18:by hand", "unet:by hand", "vgg16:by hand"),
    *("resnet20:macs=0.3:0", "resnet20:macs=0.3:1", "resnet20:macs=0.3:2", "squeezenet:macs=0.3", "unet:macs=0.3"),
    *("resnet18:macs=0.3", "vgg16:macs=0.3", "dncnn:macs=0.25", "resnet20:minutes=0.25", "unet:minutes=1"),
]
IMAGES = {"unet": 20, "craft": 20, "unet 31m at 512": 4, "unet 31m at 1024": 4}
"""Random ones, 64 where it is not said."""


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
    parser.add_argument("--timed", nargs="+", type=int, default=[500], help="convs, of table")
    parser.add_argument("--fitted", nargs="+", default=FITTED, help="of fit: network:goal, or network:goal:seed")
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


def _table(options: argparse.Namespace) -> Iterator[Row]:
    for count in options.timed:
        yield in_fresh_process(table_row, count, options.threads)


def table_row(count: int, threads: int) -> Row:
    """Return what a latency table of a chain of residual blocks takes."""
    torch.set_num_threads(threads)
    seen = capture_as_convs(nn.Sequential(*(Block() for _ in range(count))).eval(), torch.randn(1, 16, 16, 16))
    with tempfile.TemporaryDirectory() as folder, watched() as stages:
        runtime = cs.Runtime(threads, cache=folder)
        seconds, _ = _processor(partial(runtime.measure, seen, BUDGET_FORMS, progress=False))
    return {"network": f"{count} convs", "table s": seconds, **stages.columns()}


def _fit(options: argparse.Namespace) -> Iterator[Row]:
    for one in options.fitted:
        name, goal, seed = (*one.split(":"), "0")[:3]
        yield in_fresh_process(fit_row, name, goal, int(seed), options.threads)


def fit_row(name: str, goal: str, seed: int, threads: int) -> Row:
    """Return what a conversion and the export of its bundle take of a processor, beside forward passes; and memory."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, images, metric = _network(name, seed)
    calibration = cs.Images(images, trusted=metric is None)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONVSURGEON_CACHE"] = folder
        before_mb = memory_mb("VmRSS")
        with watched() as once:
            forward = min(_processor(partial(_forward, model, images))[0] for _ in range(2))
        convert = partial(
            cs.convert, model, images[:1], calibration=calibration, seed=seed, progress=False, **_goal(goal)
        )
        began = time.monotonic()
        with watched() as stages:
            seconds, result = _processor(convert)
        row = {"network": name, "goal": goal, "seed": seed, "forward s": forward, "convert s": seconds}
        row |= {"passes": seconds / forward, "passes run": 2 * stages.conv_macs / once.conv_macs}
        row |= {"wall s": time.monotonic() - began, "peak MB above the start": memory_mb("VmHWM") - before_mb}
        row |= stages.columns()
        with watched() as stages:
            row["export s"] = _processor(partial(cs.export, result, Path(folder) / "bundle", progress=False))[0]
        row |= {f"export: {name}": value for name, value in stages.columns().items()}
        if metric is not None:
            row |= {"before": metric(model), "after": metric(result.model)}
        row |= {"trials": len(result.trials), "changed": len(result.changes), "speed": result.report.speed}
        return row | {"load": os.getloadavg()[0]}


def _network(name: str, seed: int) -> tuple[nn.Module, Tensor, Callable[[nn.Module], float] | None]:
    """Return a network, images to calibrate on, and its metric where it is pretrained."""
    if name in CASES:
        return CASES[name].model(), CASES[name].images(seed), CASES[name].metric
    if name == "squeezenet":
        subject = SUBJECTS[name]()
        return subject.make(), subject.images(seed), partial(top1, subject)
    model, example = random_network(name)
    return model, torch.randn(IMAGES.get(name, 64), *example.shape[1:]), None


def _goal(name: str) -> dict[str, Any]:
    """Return the arguments of `default`, `by hand`, `minutes=1`, or a budget such as `macs=0.3`."""
    if name == "by hand":
        return {"forms": {"*": cs.CP(rank=cs.Share(0.3))}}
    if name.startswith("minutes="):
        return {"minutes": float(name.removeprefix("minutes="))}
    return {} if name == "default" else {"goal": cs.Budget.parse(name)}


def top1(subject: Subject, model: nn.Module) -> float:
    """Return the top-1 of a classifier on a subject's test images, in percent."""
    with torch.no_grad():
        right = [model(images).argmax(1) == answers for images, answers in subject.test()]
    return 100 * float(torch.cat(right).double().mean())


def _processor(task: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a processor that a task and its processes take, and what it returns."""
    started = processor_seconds()
    found = task()
    return processor_seconds() - started, found


def _forward(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        for batch in images.split(64 if images.shape[-1] <= 96 else 4):
            model(batch)


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "rewrite": _rewrite,
    "memory": _memory,
    "growth": _growth,
    "table": _table,
    "fit": _fit,
}
