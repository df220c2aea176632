"""Which forms pay on a GPU, in torch, torch.compile and onnxruntime's or TensorRT's kernels?

ResNet-50, a U-Net and a super-resolution network of random weights: as they are, and with every conv that takes a form
in it, `spatial` being a k x 1 conv and a 1 x k one. The forms of one network, precision and runtime run in turns, and a
sample is of as many runs as take `SAMPLE_MS`. Every network has `--seconds`, which they share, and what is not made in
its time has a row that says so: all three take nine minutes. `--tiny --device cpu` is a test of the script itself,
and all that was run of it so far: it has never been run on a GPU.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn import functional as F

import convsurgeon as cs
from convsurgeon.onnx.exporter import export_graph
from convsurgeon.onnxnet.measuring.engine import Engine
from tests.benchmarks.cases import add_networks
from tests.benchmarks.measure import paired_ratio
from tests.benchmarks.runner import Row

FORMS: dict[str, cs.Form] = {
    "separable": cs.DepthwiseSeparable(rank=2),
    "cp": cs.CP(rank=cs.Share(0.3)),
    "lowrank": cs.LowRank(rank=cs.Share(0.5)),
}
SAMPLE_MS, MOST_ROUNDS, LEAST_ROUNDS = 10.0, 40, 10
PROVIDERS = {"cuda": ("TensorrtExecutionProvider", "CUDAExecutionProvider"), "cpu": ("CPUExecutionProvider",)}
Task = Callable[[], object]


class Bottleneck(nn.Module):
    """The block of ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        sizes = ((inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1))
        parts = [[nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU()] for i, o, k, s in sizes]
        self.body = nn.Sequential(*itertools.chain(*parts))[:-1]
        same = inputs == 4 * width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, 4 * width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet50(width: int) -> nn.Module:
    """Return ResNet-50; 64 is its usual width."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width << stage, 2 if stage and not block else 1))
            inputs = 4 * width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


class UNet(nn.Module):
    """Four times down and up, with two convs at every step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [width << step for step in range(5)]
        self.down = nn.ModuleList(_twice(i, o) for i, o in itertools.pairwise([3, *sizes]))
        self.up = nn.ModuleList(_twice(o + i, i) for i, o in reversed(list(itertools.pairwise(sizes))))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for part in self.down:
            x = part(F.max_pool2d(x, 2) if kept else x)
            kept.append(x)
        for part, skipped in zip(self.up, kept[-2::-1], strict=True):
            x = part(torch.cat([F.interpolate(x, scale_factor=2.0), skipped], 1))
        return self.head(x)


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


def super_resolution(width: int) -> nn.Module:
    """Return 16 convs at the small size and a shuffle of pixels to four times that."""
    middle = [part for _ in range(16) for part in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
    ends = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 48, 3, padding=1)
    return nn.Sequential(ends[0], nn.ReLU(), *middle, ends[1], nn.PixelShuffle(4))


NETWORKS: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "resnet50": (resnet50, 224),
    "unet": (UNet, 512),
    "super-resolution": (super_resolution, 256),
}
"""How each is made of a width, and the side of its images."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add which networks, how large, and how long."""
    add_networks(parser, list(NETWORKS), list(NETWORKS))
    parser.add_argument("--runtimes", nargs="+", default=["torch", "compile", "onnxruntime"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=170, help="for each network")
    parser.add_argument("--device", default="cuda", choices=list(PROVIDERS))
    parser.add_argument("--tiny", action="store_true", help="16 channels and 32 pixels, as a test of the script")


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each network, precision, runtime and form."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu: torch sees no CUDA device; run it where there is one (--tiny --device cpu tests it)")
    for name in options.networks:
        until = time.monotonic() + options.seconds
        build, side = NETWORKS[name]
        example = torch.randn(options.batch, 3, *[32 if options.tiny else side] * 2)
        models = _models(build(16 if options.tiny else 64).eval(), example)
        groups = list(itertools.product(_kinds(options), ("fp16", "fp32")))
        for left, (kind, precision) in zip(range(len(groups), 0, -1), groups, strict=True):
            end = time.monotonic() + (until - time.monotonic()) / left
            about = {"network": name, "runtime": kind, "precision": precision}
            try:
                tasks = _tasks(kind, precision, models, example, options, end)
                times = _in_turns(tasks, options.device, end)
            except Exception as error:  # whatever a runtime raises for a network that it does not take
                yield about | {"error": (str(error).splitlines() or [type(error).__name__])[0][:90]}
                continue
            dense = times["dense"]
            for form, own in times.items():
                paired = paired_ratio(dense, own) if form != "dense" else {"ratio": None, "interval": None}
                figures = {"ms": float(np.median(own)), "times as fast": paired["ratio"], "95 %": paired["interval"]}
                yield about | {"form": form, "rounds": len(own)} | figures


def finish(_options: argparse.Namespace, rows: list[Row]) -> int:
    """Print which forms pay: those whose whole interval is above 1."""
    paying = [row for row in rows if row.get("95 %") and float(row["95 %"].split()[0]) > 1]
    for row in paying:
        print("pays:", *(row[key] for key in ("network", "runtime", "precision", "form", "95 %")))
    if not paying:
        print("No form pays: leave these networks alone on this device.")
    return 0


def _models(model: nn.Module, example: Tensor) -> dict[str, nn.Module]:
    """Return the network as it is and in every form; nothing is fitted, since only time counts."""
    plans = {label: cs.plan(model, example, forms=[form]) for label, form in FORMS.items()}
    made = {"dense": model} | {label: cs.rebuild(model, plan) for label, plan in plans.items() if plan.changes}
    made["spatial"] = copy.deepcopy(model)
    _cut(made["spatial"])
    for one in made.values():
        for parameter in one.parameters():
            nn.init.normal_(parameter, std=0.02)
    return {label: one.eval() for label, one in made.items()}


def _cut(parent: nn.Module) -> None:
    """Put a k x 1 conv and a 1 x k one in the place of every conv, with 0.3 of its MACs."""
    for name, child in parent.named_children():
        _cut(child)
        if isinstance(child, nn.Conv2d) and child.kernel_size[0] > 1 and child.in_channels > 3:
            i, o, k, s = child.in_channels, child.out_channels, child.kernel_size[0], child.stride[0]
            inner = max(8, round(0.3 * k * i * o / (s * i + o)) // 8 * 8)
            tall = nn.Conv2d(i, inner, (k, 1), (s, 1), (k // 2, 0), bias=False)
            setattr(parent, name, nn.Sequential(tall, nn.Conv2d(inner, o, (1, k), (1, s), (0, k // 2))))


def _kinds(options: argparse.Namespace) -> list[str]:
    """Return the runtimes that are here, onnxruntime by its providers."""
    there = [one for one in PROVIDERS[options.device] if one in ort.get_available_providers()]
    return [one for kind in options.runtimes for one in (there if kind == "onnxruntime" else [kind])]


def _tasks(
    kind: str, precision: str, models: dict[str, nn.Module], example: Tensor, options: argparse.Namespace, until: float
) -> dict[str, Task]:
    """Return a run of every form, as many as can be made in time."""
    make = _in_torch if kind in ("torch", "compile") else _in_onnxruntime
    torch.compiler.reset()  # torch compiles a forward for eight modules, and runs all further ones as they are
    tasks: dict[str, Task] = {}
    for form, model in models.items():
        if time.monotonic() > until:
            break
        tasks[form] = make(kind, precision, model, example, options.device)
        tasks[form]()
    if len(tasks) < 2:
        raise TimeoutError("left out: its network's time is over")
    return tasks


def _in_torch(kind: str, precision: str, model: nn.Module, example: Tensor, device: str) -> Task:
    dtype = torch.float16 if precision == "fp16" else torch.float32
    placed = copy.deepcopy(model).to(device, dtype, memory_format=torch.channels_last)
    image = example.to(device, dtype).contiguous(memory_format=torch.channels_last)
    called: Any = torch.compile(placed, mode="reduce-overhead") if kind == "compile" else placed
    return torch.inference_mode()(lambda: called(image))


@functools.cache
def _graph(model: nn.Module, example: Tensor) -> ModelProto:
    return export_graph(model, example)


def _in_onnxruntime(kind: str, precision: str, model: nn.Module, example: Tensor, device: str) -> Task:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph = _graph(model, example)
    graph = convert_float_to_float16(graph, keep_io_types=True) if precision == "fp16" else graph
    options = {"trt_fp16_enable": precision == "fp16"} if kind.startswith("Tensorrt") else {}
    session = Engine(1, kind, options).open(graph.SerializeToString())
    binding, image = session.io_binding(), ort.OrtValue.ortvalue_from_numpy(example.numpy(), device, 0)
    binding.bind_ortvalue_input(session.get_inputs()[0].name, image)
    binding.bind_output(session.get_outputs()[0].name, device)
    return lambda: session.run_with_iobinding(binding)


def _in_turns(tasks: dict[str, Task], device: str, until: float) -> dict[str, list[float]]:
    """Return the milliseconds of a run of every task, by round; each round goes another way round."""
    repeats = {name: max(1, int(SAMPLE_MS / _sample(task, 3, device))) for name, task in tasks.items()}
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(MOST_ROUNDS):
        for name in list(tasks)[:: 1 if turn % 2 else -1]:
            times[name].append(_sample(tasks[name], repeats[name], device))
        if turn + 1 >= LEAST_ROUNDS and time.monotonic() > until:
            break
    return times


def _sample(task: Task, runs: int, device: str) -> float:
    """Return the milliseconds of a run, by the device's own clock where it has one."""
    if device == "cpu":
        started = time.perf_counter()
        for _ in range(runs):
            task()
        return 1e3 * (time.perf_counter() - started) / runs
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(runs):
        task()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / runs
