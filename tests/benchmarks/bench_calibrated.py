"""CIFAR ResNets with weights from the SVD and fitted to unlabelled images: top-1, every conv but the stem.

python tests/benchmarks/bench_calibrated.py [resnet20 resnet56] [--images 1024] [--ranks 2 3 4] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from tests.networks import cifar_calibration, cifar_top1, pretrained


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["resnet20"])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.networks:
        model = pretrained(name)
        for kind in (cs.DepthwiseSeparable, cs.Blueprint):
            for rank in options.ranks:
                rows.append(_row(name, model, kind(rank=rank), options))
                print(rows[-1], flush=True)
    print(tabulate(rows, ["network", "form", "MACs", "SVD", "fitted, per seed", "mean", "seconds"], floatfmt=".2f"))


def _row(name: str, model: torch.nn.Module, form: cs.Form, options: argparse.Namespace) -> tuple[object, ...]:
    example = torch.zeros(1, 3, 32, 32)
    plain = cs.convert(model, example, forms=[form], allow_growth=True)
    found, seconds = [], 0.0
    for seed in options.seeds:
        images = cifar_calibration(options.images, seed)
        start = time.perf_counter()
        result = cs.convert(
            model,
            example,
            forms=[form],
            allow_growth=True,
            calibration=images,
            images=options.images,
            seed=seed,
            progress=False,
        )
        seconds += time.perf_counter() - start
        found.append(cifar_top1(result.model))
    share = plain.report.after.macs / plain.report.before.macs
    listed = ", ".join(f"{value:.2f}" for value in found)
    mean = sum(found) / len(found)
    return name, form.label, share, cifar_top1(plain.model), listed, mean, seconds / len(found)


if __name__ == "__main__":
    main()
