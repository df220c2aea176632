"""Time of a calibrated conversion in forward passes of the original over the same images, taken in turns; peak memory.

python tests/benchmarks/bench_fit_time.py [--threads 2] [--rounds 3] [--cases resnet20:default unet:cp]

Cases are network:form. Networks: `resnet20`, `resnet18` (torchvision), `unet` (31 million parameters, 64 to 1024
channels, 512x512), `unet1024` (the same at 1024x1024), of random weights but for ResNet-20. Forms: `default` (whatever
`convert` takes, rating included), `cp` (0.3 of the MACs), `separable`, `blueprint` (rank 2).
"""

from __future__ import annotations

import argparse
import re
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

CASES = ["resnet20:default", "resnet20:separable", "resnet20:blueprint", "resnet18:default", "unet:cp"]
FORMS: dict[str, list[cs.Form] | None] = {
    "default": None,
    "cp": [cs.CP(cs.Share(0.3))],
    "separable": [cs.DepthwiseSeparable(rank=2)],
    "blueprint": [cs.Blueprint(rank=2)],
}


class Pair(nn.Sequential):
    """Two convs, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        sizes = ((inputs, outputs), (outputs, outputs))
        parts = ((nn.Conv2d(*size, 3, padding=1, bias=False), nn.BatchNorm2d(size[1]), nn.ReLU()) for size in sizes)
        super().__init__(*(module for part in parts for module in part))


class UNet(nn.Module):
    """Ronneberger et al. 2015 with padding: five levels, 31 million parameters at a width of 64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(Pair(one, two) for one, two in zip([3, *sizes], sizes, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * size, size, 2, 2) for size in sizes[-2::-1])
        self.join = nn.ModuleList(Pair(2 * size, size) for size in sizes[-2::-1])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, pair in enumerate(self.down):
            x = pair(torch.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for up, join, shortcut in zip(self.up, self.join, kept[-2::-1], strict=True):
            x = join(torch.cat([shortcut, up(x)], 1))
        out: Tensor = self.head(x)
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--bar", action="store_true", help="show the bar of the conversion")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        torch.set_num_threads(options.threads)
        return _case(*options.case.split(":"), options.rounds, options.bar)
    rows = []
    for case in options.cases:  # a process each, for its peak memory
        command = [sys.executable, __file__, "--threads", str(options.threads), "--rounds", str(options.rounds)]
        command += ["--case", case, *(["--bar"] if options.bar else [])]
        rows.append(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split())
        print(*rows[-1], flush=True)
    headers = ["network", "form", "images", "forward s", "convert s", "forwards", "peak MB", "before it"]
    print(tabulate(rows, headers, tablefmt="pipe"))
    return None


def _case(network: str, kind: str, rounds: int, bar: bool) -> None:
    model, images, batch = _loaded(network)
    growth = kind == "blueprint"  # at stride 2 it has more MACs
    batches = images.split(batch)
    _forward(model, batches)  # torch's own first-call costs
    before = _peak_mb()
    forwards, converts = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        _forward(model, batches)
        middle = time.perf_counter()
        cs.convert(
            model,
            images[:1],
            forms=FORMS[kind],
            policy=cs.min_channels(16),
            allow_growth=growth,
            calibration=batches,
            images=len(images),
            progress=bar,
        )
        forwards.append(middle - start)
        converts.append(time.perf_counter() - middle)
    ratio = statistics.median(two / one for one, two in zip(forwards, converts, strict=True))
    times = statistics.median(forwards), statistics.median(converts)
    print(network, kind, len(images), *(f"{value:.2f}" for value in times), f"{ratio:.1f}", _peak_mb(), before)


def _loaded(network: str) -> tuple[nn.Module, Tensor, int]:
    """The model, its images and how many go through it at a time."""
    generator = torch.Generator().manual_seed(0)
    if network == "resnet20":
        return pretrained("resnet20"), cifar_calibration(1000), 64
    if network == "resnet18":
        model: nn.Module = import_torchvision().models.resnet18(weights=None)
        return model.eval(), torch.randn(64, 3, 224, 224, generator=generator), 64
    torch.manual_seed(0)
    images, size = (16, 1024) if network == "unet1024" else (4, 512)
    return UNet(64).eval(), torch.randn(images, 3, size, size, generator=generator), 1


def _forward(model: nn.Module, batches: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        for batch in batches:
            model(batch)


def _peak_mb() -> int:
    """`VmHWM`: what `getrusage` gives would inherit the parent's peak."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


if __name__ == "__main__":
    main()
