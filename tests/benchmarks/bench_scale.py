"""How time and memory grow with the number of layers and with the size of the model.

    python tests/benchmarks/bench_scale.py [--layers 50 200 800 2000] [--models vgg19 wide_resnet101_2] [--rank 2]

Every row is a process of its own, so that its peak (`VmHWM`) is its own too. Chains are residual blocks of 16 channels;
models are timm's, with random weights. The peak is given above what the process held before the model was made, in
sizes of the model where that is large: the model itself is in it, and the target is 2.5.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from tests.networks import import_timm

_TARGET = 2.5


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="*", type=int, default=[50, 200, 800, 2000])
    parser.add_argument("--models", nargs="*", default=["vgg19", "wide_resnet101_2"])
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(_row(options.row, options.rank)))
        return 0
    names = [
        f"{kind}:{what}" for kind, whats in (("chain", options.layers), ("timm", options.models)) for what in whats
    ]
    rows = [_in_a_process(name, options.rank) for name in [*names, *(f"meta {name}" for name in names)]]
    print(tabulate(rows, headers="keys", floatfmt=".3g", missingval="-"))
    over = [row for row in rows if row.get("peak/model", 0) > _TARGET and row["model_mb"] > 100]
    return 1 if over else 0


def _in_a_process(name: str, rank: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--row", name, "--rank", str(rank)]
    row: dict[str, Any] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    return row


def _row(name: str, rank: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    kind, _, what = name.removeprefix("meta ").partition(":")
    device = "meta" if name.startswith("meta ") else "cpu"
    _warm()
    base = _memory_mb("VmRSS")
    with torch.device(device):
        model = _chain(int(what)) if kind == "chain" else import_timm().create_model(what, pretrained=False)
    x = torch.randn(1, 16, 8, 8) if kind == "chain" else torch.randn(1, 3, 64, 64)
    size = sum(parameter.nbytes for parameter in model.parameters()) / 1e6 if device == "cpu" else 0.0
    start = time.perf_counter()
    made = cs.plan(model, x, forms=[cs.DepthwiseSeparable(rank=rank)])
    planned = time.perf_counter()
    row: dict[str, Any] = {"model": name, "convs": len(made.steps), "model_mb": size, "plan_s": planned - start}
    row["plan_s/1000"] = 1000 * row["plan_s"] / len(made.steps)
    if device == "cpu":
        converted, _ = cs.operate(model, made, x)
        row["operate_s"] = time.perf_counter() - planned
        row["operate_s/1000"] = 1000 * row["operate_s"] / len(made.steps)
        assert len(list(converted.modules())) > len(made.steps)
    row["peak_mb"] = _memory_mb("VmHWM") - base
    row["peak_mb/1000"] = 1000 * (row["peak_mb"] - size) / len(made.steps)
    return row | ({"peak/model": row["peak_mb"] / size} if size > 100 else {})


def _warm() -> None:
    """What the first conversion of a process loads, once, is not the model's."""
    import_timm()
    model = _chain(3)
    cs.operate(model, cs.plan(model, torch.randn(1, 16, 8, 8)), torch.randn(1, 16, 8, 8))


def _chain(layers: int) -> nn.Module:
    return nn.Sequential(*(Block() for _ in range(layers)))


def _memory_mb(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
