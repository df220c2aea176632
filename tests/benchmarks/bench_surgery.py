"""How long the surgery takes, and how much memory, beside copying the model and beside other tools.

    python tests/benchmarks/bench_surgery.py [--only rewrite memory cifar scaling profile] [--rounds 7]

Weights are random: this is about time. Everything compared in one table is timed in the same process in turns, in a
new random order every round, and judged by the ratio of medians; absolute times mean nothing beyond the machine. One
thread unless told otherwise: with more, every parallel region waits for a core that a neighbour holds. The targets:
`operate` within three deep copies and within one copy of the model plus 64 MB; `convert` of a 56-layer CIFAR network
within one ONNX export of it. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import ctypes
import gc
import json
import os
import pstats
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from tests.networks import cifar_resnet, import_torchvision

Task = Callable[[], object]
NETWORKS = ("resnet50", "vgg16")
DEPTHS = (50, 200, 800, 2000)
IMAGE = (1, 3, 224, 224)
TIMES_A_COPY = 3.0
EXTRA_BYTES = 64 << 20


# What is measured.


def network(name: str) -> nn.Module:
    """A torchvision architecture in eval mode, with random weights."""
    model: nn.Module = getattr(import_torchvision().models, name)(weights=None)
    return model.eval()


def rank_one(model: nn.Module, example: Tensor) -> cs.Plan:
    """Every 3x3 conv as separable of rank 1."""
    return cs.plan(model, example, forms=[cs.DepthwiseSeparable(rank=1)], policy=cs.kernel_size(3))


class Block(nn.Module):
    """Two 3x3 convs of 16 channels around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def chain(convs: int) -> nn.Module:
    return nn.Sequential(*(Block() for _ in range(convs // 2))).eval()


# What it is compared with.


def svd_loop(model: nn.Module) -> nn.Module:
    """The obvious implementation: one SVD per input channel of every 3x3 conv, on a copy."""
    return _replace(copy.deepcopy(model), _svd_separable)


def _svd_separable(conv: nn.Conv2d) -> nn.Module:
    inputs, outputs, bias = conv.in_channels, conv.out_channels, conv.bias is not None
    depthwise = nn.Conv2d(inputs, inputs, 3, conv.stride, conv.padding, groups=inputs, bias=False)  # type: ignore[arg-type]
    pointwise = nn.Conv2d(inputs, outputs, 1, bias=bias)
    with torch.no_grad():
        for channel in range(inputs):
            left, values, right = torch.linalg.svd(conv.weight[:, channel].flatten(1), full_matrices=False)
            depthwise.weight[channel, 0] = right[0].view(conv.kernel_size) * values[0].sqrt()
            pointwise.weight[:, channel, 0, 0] = left[:, 0] * values[0].sqrt()
        if conv.bias is not None and pointwise.bias is not None:
            pointwise.bias.copy_(conv.bias)
    return nn.Sequential(depthwise, pointwise)


def bsconv(model: nn.Module) -> nn.Module:
    """bsconv's replacer on a copy; it draws new weights at random."""
    from bsconv.pytorch import BSConvU_Replacer  # type: ignore[import-untyped]

    replaced: nn.Module = BSConvU_Replacer(kernel_sizes=((3, 3),)).apply(copy.deepcopy(model))
    return replaced


def tensorly(model: nn.Module) -> nn.Module:
    """tensorly-torch's `from_conv` on a copy: Tucker with as many parameters; CP takes minutes a layer."""
    from tltorch import FactorizedConv  # type: ignore[import-untyped]

    def factorised(conv: nn.Conv2d) -> nn.Module:
        found: nn.Module = FactorizedConv.from_conv(
            conv, factorization="tucker", rank=0.12, implementation="factorized"
        )
        return found

    return _replace(copy.deepcopy(model), factorised)


def _replace(model: nn.Module, replacement: Callable[[nn.Conv2d], nn.Module]) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, replacement(module))
    return model


PEERS = {"SVD per channel": svd_loop, "bsconv 0.4 (random weights)": bsconv, "tensorly-torch (Tucker)": tensorly}


# How it is measured.


def seconds(task: Task) -> float:
    """One run, without the collection of what earlier ones left."""
    gc.collect()
    started = time.perf_counter()
    result = task()
    elapsed = time.perf_counter() - started
    del result
    return elapsed


def interleaved(tasks: Mapping[str, Task], rounds: int) -> dict[str, list[float]]:
    """Every task once a round, in a new random order; one more round before, which imports and warms up, is dropped."""
    order = list(tasks)
    times: dict[str, list[float]] = {name: [] for name in tasks}
    shuffle = random.Random(0).shuffle
    for turn in range(rounds + 1):
        shuffle(order)
        for name in order:
            elapsed = seconds(tasks[name])
            if turn:
                times[name].append(elapsed)
    return times


def ratio(times: Mapping[str, Sequence[float]], name: str, base: str) -> float:
    return statistics.median(times[name]) / statistics.median(times[base])


def table(times: Mapping[str, Sequence[float]], base: str, title: str) -> str:
    """Medians, spread and the ratio of the medians to one of the rows."""
    rows = [
        (name, 1e3 * statistics.median(each), 1e3 * min(each), 1e3 * max(each), ratio(times, name, base))
        for name, each in times.items()
    ]
    count = len(next(iter(times.values())))
    head = f"{title}; n = {count}, {load()}"
    return f"\n{head}\n" + tabulate(rows, ["", "median ms", "min", "max", f"x {base}"], floatfmt=".2f")


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def verdict(what: str, value: float, limit: float) -> bool:
    print(f"{'met   ' if value <= limit else 'MISSED'} {what}: {value:.2f}, at most {limit:.2f}")
    return value <= limit


# The sections. Each prints its tables and says whether its targets are met.


def rewrite(rounds: int) -> bool:
    """Plan to finished model, beside a copy and beside the peers."""
    met = True
    for name in NETWORKS:
        model, example = network(name), torch.randn(IMAGE)
        plan = rank_one(model, example)
        tasks: dict[str, Task] = {
            "deepcopy": partial(copy.deepcopy, model),
            "operate": partial(cs.operate, model, plan, example),
            "rebuild": partial(cs.rebuild, model, plan),
            "plan": partial(rank_one, model, example),
        }
        tasks |= {title: partial(peer, model) for title, peer in available_peers().items()}
        times = interleaved(tasks, rounds)
        print(table(times, "deepcopy", f"{name}, {len(plan.changes)} convs 3x3 at rank 1"))
        met &= verdict(f"{name}: operate / deepcopy", ratio(times, "operate", "deepcopy"), TIMES_A_COPY)
    return met


def available_peers() -> dict[str, Callable[[nn.Module], nn.Module]]:
    """The peers that run here; the others are named."""
    found: dict[str, Callable[[nn.Module], nn.Module]] = {}
    small = nn.Sequential(nn.Conv2d(16, 16, 3))
    for title, peer in PEERS.items():
        try:
            peer(small)
        except Exception as error:  # not installed, or broken beside this torch
            print(f"left out: {title} ({type(error).__name__}: {str(error)[:80]})")
        else:
            found[title] = peer
    return found


def memory(_rounds: int) -> bool:
    """Peak beyond what stood before, and the time of the first call, each in a fresh process."""
    met, rows = True, []
    for name in NETWORKS:
        runs = {
            task: [_fresh_process(name, task) for _ in range(3)] for task in ("deepcopy", "operate", "rebuild", "plan")
        }
        base = _median(runs["deepcopy"], "seconds")
        for task, found in runs.items():
            size, extra, first = (_median(found, field) for field in ("model_bytes", "extra_bytes", "seconds"))
            rows.append((name, task, size / 1e6, extra / 1e6, extra / size, 1e3 * first, first / base))
            if task == "operate":
                met &= verdict(f"{name}: extra MB of operate", extra / 1e6, (size + EXTRA_BYTES) / 1e6)
    print(f"\nPeak extra resident memory and time of the first call, fresh process each, median of 3; {load()}")
    head = ["network", "", "model MB", "extra MB", "x model", "first ms", "x deepcopy"]
    print(tabulate(rows, head, floatfmt=("", "", ".1f", ".1f", ".2f", ".1f", ".2f")))
    return met


def _median(found: Sequence[Mapping[str, float]], field: str) -> float:
    return statistics.median(one[field] for one in found)


def _fresh_process(name: str, task: str) -> dict[str, float]:
    call = [sys.executable, __file__, "--threads", str(torch.get_num_threads()), "--measure", name, task]
    out = subprocess.run(call, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(out.stdout.splitlines()[-1])
    return found


def measure_memory(name: str, task: str) -> None:
    """The inside of `_fresh_process`: the peak of one task over the resident size just before it."""
    model, example = network(name), torch.randn(IMAGE)
    plan = rank_one(model, example)
    small = chain(4)
    cs.operate(small, rank_one(small, torch.randn(1, 16, 8, 8)), torch.randn(1, 16, 8, 8))  # imports, thread pools
    tasks: dict[str, Task] = {
        "deepcopy": partial(copy.deepcopy, model),
        "operate": partial(cs.operate, model, plan, example),
        "rebuild": partial(cs.rebuild, model, plan),
        "plan": partial(rank_one, model, example),
    }
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is resident now
    before = _status("VmRSS")
    started = time.perf_counter()
    result = tasks[task]()
    elapsed = time.perf_counter() - started
    extra = _status("VmHWM") - before
    del result
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    print(json.dumps({"model_bytes": size, "extra_bytes": extra, "seconds": elapsed}))


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def cifar(rounds: int) -> bool:
    """The whole of `convert` beside one ONNX export."""
    model, example = cifar_resnet(56).eval(), torch.randn(1, 3, 32, 32)
    form, policy = cs.DepthwiseSeparable(rank=1), cs.kernel_size(3)
    tasks: dict[str, Task] = {
        "torch.onnx.export": lambda: export(model, example),
        "convert, as it comes": lambda: cs.convert(model, example, calibration=False),
        "convert, all 3x3 at rank 1": lambda: cs.convert(
            model, example, forms=[form], policy=policy, calibration=False
        ),
        "convert, and its printed report": lambda: str(cs.convert(model, example, calibration=False).report),
    }
    times = interleaved(tasks, min(rounds, 5))
    print(table(times, "torch.onnx.export", "56-layer CIFAR ResNet, whole conversion beside one export"))
    return verdict(
        "convert / export", max(ratio(times, name, "torch.onnx.export") for name in tasks if "conv" in name), 1
    )


def export(model: nn.Module, example: Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(model, (example,), path, dynamo=True, external_data=False, verbose=False)


def scaling(rounds: int) -> bool:
    """Time against the number of convs: a cost per conv that stays level means nothing is quadratic."""
    rows = []
    form, policy, x = cs.DepthwiseSeparable(rank=1), cs.everything(), torch.randn(1, 16, 8, 8)
    for convs in DEPTHS:
        model = chain(convs)
        plan = cs.plan(model, x, forms=[form], policy=policy)
        tasks: dict[str, Task] = {
            "deepcopy": partial(copy.deepcopy, model),
            "capture": partial(cs.capture, model, x),
            "plan": partial(cs.plan, model, x, forms=[form], policy=policy),
            "operate": partial(cs.operate, model, plan, x),
            "convert": partial(cs.convert, model, x, forms=[form], policy=policy),
        }
        times = interleaved(tasks, rounds if convs <= 200 else 3)
        rows.append((convs, *(1e3 * statistics.median(each) / convs for each in times.values())))
    print(f"\nMilliseconds per conv, chains of residual blocks of 16 channels; {load()}")
    print(tabulate(rows, ["convs", "deepcopy", "capture", "plan", "operate", "convert"], floatfmt=".3f"))
    growth = [after / before for before, after in zip(rows[1][1:], rows[-1][1:], strict=True)]
    return verdict("ms per conv at 2000 / at 200, worst column", max(growth), 2)


def profile(_rounds: int) -> bool:
    """What dominates, by own time."""
    subjects = {"resnet50": (network("resnet50"), torch.randn(IMAGE)), "chain": (chain(800), torch.randn(1, 16, 8, 8))}
    for name, (model, example) in subjects.items():
        plan = rank_one(model, example)
        calls: dict[str, Task] = {
            "plan": partial(rank_one, model, example),
            "operate": partial(cs.operate, model, plan, example),
        }
        for title, task in calls.items():
            task()
            print(f"\n{title} of {name}, by own time")
            print(tabulate(_hottest(task), ["function", "calls", "own ms", "with callees ms"], floatfmt=".1f"))
    return True


def _hottest(task: Task) -> list[tuple[str, int, float, float]]:
    profiler = cProfile.Profile()
    profiler.runcall(task)
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    rows = [
        (f"{Path(file).name}:{name}", calls, 1e3 * own, 1e3 * total)
        for (file, _, name), (_, calls, own, total, _) in stats.items()
    ]
    return sorted(rows, key=lambda row: -row[2])[:10]


SECTIONS = {section.__name__: section for section in (rewrite, memory, cifar, scaling, profile)}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", nargs=2, metavar=("NETWORK", "TASK"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", module="tltorch|tensorly")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if options.measure:
        measure_memory(*options.measure)
        return 0
    met = [SECTIONS[name](options.rounds) for name in options.only]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
