"""Real networks with weights fitted to unlabelled images: mean and spread over seeds, beside the SVD of the weights.

python tests/benchmarks/bench_calibrated.py [resnet20 resnet56 dncnn vdsr] [--ranks 2 3 4] [--seeds 0 1 2]

CIFAR networks: top-1 on 932 test images, every conv but the stem, 1000 training images. DnCNN: PSNR on the 12
images of Set12 at sigma 25, calibrated on noisy 64x64 crops of `photos/`; VDSR: PSNR x2 on Set5, on blurred crops; of
both the convs of 64 inputs and 64 outputs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from tests.networks import (
    blurred_crops,
    cifar_calibration,
    cifar_top1,
    noisy_crops,
    pretrained,
    set12_psnr,
    vdsr_psnr,
)


@dataclass(frozen=True)
class Case:
    """How a network is calibrated and measured."""

    images: Callable[[int], Tensor]
    metric: Callable[[nn.Module], float]


CASES = {
    "resnet20": Case(lambda seed: cifar_calibration(1000, seed), cifar_top1),
    "resnet56": Case(lambda seed: cifar_calibration(1000, seed), cifar_top1),
    "dncnn": Case(lambda seed: noisy_crops(200, 64, seed), set12_psnr),
    "vdsr": Case(lambda seed: blurred_crops(200, 64, seed), vdsr_psnr),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["resnet20"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--forms", nargs="+", default=["separable", "blueprint"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = {"separable": cs.DepthwiseSeparable, "blueprint": cs.Blueprint}
    rows = []
    for name in options.networks:
        for rank in options.ranks:
            for form in options.forms:
                rows.append(_row(name, kinds[form](rank=rank), options.seeds))
                print(rows[-1], flush=True)
    headers = ["network", "form", "MACs", "dense", "SVD", "mean", "spread", "seeds", "seconds each"]
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f"))


def _row(name: str, form: cs.Form, seeds: list[int]) -> tuple[object, ...]:
    case, model = CASES[name], pretrained(name)
    policy = cs.min_channels(16)
    example = case.images(0)[:1]
    plain = cs.convert(model, example, forms=[form], policy=policy, allow_growth=True, calibration=False)
    found, seconds = [], 0.0
    for seed in seeds:
        images = case.images(seed)
        start = time.perf_counter()
        result = cs.convert(
            model,
            example,
            forms=[form],
            policy=policy,
            allow_growth=True,
            calibration=images,
            images=len(images),
            seed=seed,
            progress=False,
        )
        seconds += time.perf_counter() - start
        found.append(case.metric(result.model))
    share = plain.report.after.macs / plain.report.before.macs
    listed = ", ".join(f"{value:.2f}" for value in found)
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    values = (case.metric(model), case.metric(plain.model), statistics.mean(found), spread)
    return name, form.label, share, *values, listed, seconds / len(found)


if __name__ == "__main__":
    main()
