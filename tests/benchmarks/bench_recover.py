"""What recovery wins back from calibrated weights, from the SVD and from random ones, under one plan, step for step.

python tests/benchmarks/bench_recover.py resnet20 [--macs 0.3] [--starts calibrated svd random] [--epochs 12]
    [--seeds 0] [--threads 2] [--save FOLDER]

CIFAR networks: the 7728 training images without labels, mirrored and shifted by up to 4 pixels; top-1 on 932 test
images. DnCNN: 3000 noisy 40x40 crops of `photos/`, PSNR on the 12 images of Set12 at sigma 25; VDSR: 3000 blurred ones,
PSNR x2 on Set5. The plan comes from `Budget(macs=...)` with 1024 images (200 crops of 64x64), with `--latency` from a
table that is measured first. From random weights batch norm takes new statistics; from the others it is frozen.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
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
    """What a network is calibrated on, learns from, and is measured by."""

    calibration: Callable[[int], Tensor]
    images: Callable[[int], Tensor]
    metric: Callable[[nn.Module], float]
    transform: Callable[[Tensor], Tensor]


CIFAR = Case(
    lambda seed: cifar_calibration(1024, seed),
    lambda seed: cifar_calibration(7728, seed),
    cifar_top1,
    cs.Augment(shift=4),
)
CASES = {
    "resnet20": CIFAR,
    "resnet56": CIFAR,
    "dncnn": Case(
        lambda seed: noisy_crops(200, 64, seed), lambda seed: noisy_crops(3000, 40, seed), set12_psnr, cs.Augment()
    ),
    "vdsr": Case(
        lambda seed: blurred_crops(200, 64, seed), lambda seed: blurred_crops(3000, 40, seed), vdsr_psnr, cs.Augment()
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=list(CASES))
    parser.add_argument("--macs", type=float, default=0.3)
    parser.add_argument("--latency", type=float)
    parser.add_argument("--starts", nargs="+", default=["calibrated"], choices=["calibrated", "svd", "random"])
    parser.add_argument("--epochs", type=float, nargs="+", default=[12])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--features", type=float)
    parser.add_argument("--save", type=Path, help="weights and plan of every recovered network go there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for seed in options.seeds for row in _rows(options, seed)]
    headers = ["network", "MACs", "start", "epochs", "seed", "dense", "before", "after", "lr", "steps", "minutes"]
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".3f"))


def _rows(options: argparse.Namespace, seed: int) -> list[tuple[Any, ...]]:
    case, model = CASES[options.network], pretrained(options.network)
    images = case.images(seed)
    calibrated = _converted(options, model, case, seed)
    share = calibrated.report.after.macs / calibrated.report.before.macs
    dense = case.metric(model)
    rows = []
    for start in options.starts:
        result = _started(calibrated, start)
        before = case.metric(result.model)
        for epochs in options.epochs:
            settings = {name: value for name in ("lr", "features") if (value := getattr(options, name)) is not None}
            if start == "random":
                settings["norms"] = "updated"
            began = time.perf_counter()
            better = cs.recover(
                result,
                images,
                epochs=epochs,
                batch_size=options.batch_size,
                transform=case.transform,
                seed=seed,
                **settings,
            )
            minutes = (time.perf_counter() - began) / 60
            done = better.report.recovery[0]
            values = (dense, before, case.metric(better.model), done.lr, f"{done.best_step}/{done.steps}", minutes)
            rows.append((options.network, share, start, epochs, seed, *values))
            print(rows[-1], done.before, done.after, done.trials, flush=True)
            if options.save:
                _save(options.save, f"{options.network}-{start}-{share:.2f}-{epochs:g}-{seed}", better)
    return rows


def _converted(options: argparse.Namespace, model: nn.Module, case: Case, seed: int) -> cs.Result:
    images = case.calibration(seed)
    settings: dict[str, Any] = {"calibration": images, "images": len(images), "seed": seed, "progress": False}
    if options.latency is None:
        return cs.convert(model, images[:1], budget=cs.Budget(macs=options.macs), **settings)
    from convsurgeon.budgeting import BUDGET_FORMS

    table = cs.LatencyTable.measure(model, images[:1], BUDGET_FORMS)
    return cs.convert(model, images[:1], budget=cs.Budget(latency=options.latency), latencies=table, **settings)


def _started(calibrated: cs.Result, start: str) -> cs.Result:
    """The same structure with the weights that recovery is to begin with."""
    if start == "calibrated":
        return calibrated
    model = cs.rebuild(calibrated.original, calibrated.plan)  # factored from the weights alone
    if start == "random":
        torch.manual_seed(0)
        for name in calibrated.changes:
            for module in model.get_submodule(name).modules():
                if isinstance(module, nn.Conv2d):
                    module.reset_parameters()
    return dataclasses.replace(calibrated, model=model)


def _save(folder: Path, name: str, result: cs.Result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.contiguous() for key, value in result.model.state_dict().items()}, folder / f"{name}.safetensors"
    )
    result.plan.save(folder / f"{name}.json", overwrite=True)


if __name__ == "__main__":
    main()
