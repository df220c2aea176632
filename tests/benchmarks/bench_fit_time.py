"""Time of a calibrated conversion in forward passes of the original over the same images, taken in turns; peak memory.

python tests/benchmarks/bench_fit_time.py [--threads 2] [--rounds 3]     (torchvision for ResNet-18)
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from tests.networks import cifar_calibration, import_torchvision, pretrained

BATCH = 64
CASES = [(network, form) for network in ("resnet20", "resnet18") for form in ("separable", "blueprint")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", nargs=2, help="one case in this process, as the others are run")
    options = parser.parse_args()
    if options.case:
        torch.set_num_threads(options.threads)
        return _case(*options.case, options.rounds)
    rows = []
    for case in CASES:  # a process each, for its peak memory
        command = [sys.executable, __file__, "--threads", options.threads, "--rounds", options.rounds, "--case", *case]
        done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
        rows.append(done.stdout.split())
        print(*rows[-1], flush=True)
    headers = ["network", "form, rank 2", "images", "forward s", "convert s", "forwards", "peak MB", "before it"]
    print(tabulate(rows, headers, tablefmt="pipe"))
    return None


def _case(network: str, kind: str, rounds: int) -> None:
    model, images = _loaded(network)
    form: cs.Form = cs.DepthwiseSeparable(rank=2) if kind == "separable" else cs.Blueprint(rank=2)
    cs.convert(model, images[:1], forms=[form], allow_growth=True)  # torch's own first-call costs
    _forward(model, images[:BATCH])
    before = _peak_mb()
    forwards, converts = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        _forward(model, images)
        middle = time.perf_counter()
        cs.convert(
            model,
            images[:1],
            forms=[form],
            policy=cs.min_channels(16),
            allow_growth=True,
            calibration=images,
            images=len(images),
            progress=False,
        )
        forwards.append(middle - start)
        converts.append(time.perf_counter() - middle)
    ratio = statistics.median(two / one for one, two in zip(forwards, converts, strict=True))
    times = statistics.median(forwards), statistics.median(converts)
    print(network, kind, len(images), *(f"{value:.2f}" for value in times), f"{ratio:.1f}", _peak_mb(), before)


def _loaded(network: str) -> tuple[nn.Module, Tensor]:
    if network == "resnet20":
        return pretrained("resnet20"), cifar_calibration(1000)
    model: nn.Module = import_torchvision().models.resnet18(weights=None)
    return model.eval(), torch.randn(64, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def _forward(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        for batch in images.split(BATCH):
            model(batch)


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
