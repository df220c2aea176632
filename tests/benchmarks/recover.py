"""What does recovery win back, from calibrated weights, from the SVD and from random ones, under one plan?

CIFAR networks learn from their 7728 training images without labels, DnCNN and VDSR from 3000 crops of the photographs.
The plan comes from a budget of MACs. `int8` is the metric of the int8 file; `--precisions int8` learns through its
rounding. `--processes 2` shares the work under torchrun and says whether the weights are the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.base import processes
from tests import networks
from tests.benchmarks.cases import CASES, Case, add_networks, add_seeds
from tests.benchmarks.measure import deployed, saving
from tests.benchmarks.runner import ROOT, Row

UNLABELLED: dict[str, tuple[Callable[[int], Tensor], int]] = {
    "digits": (lambda seed: CASES["digits"].images(seed), 2),
    "resnet20": (lambda seed: networks.cifar_calibration(7728, seed), 4),
    "resnet56": (lambda seed: networks.cifar_calibration(7728, seed), 4),
    "dncnn": (lambda seed: networks.noisy_crops(3000, 40, seed), 0),
    "vdsr": (lambda seed: networks.blurred_crops(3000, 40, seed), 0),
}
"""What each network learns from, and the pixels that its images are shifted by."""
STARTS = ("calibrated", "weights", "random")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what is learnt, from where, for how long."""
    add_networks(parser, list(CASES), ["resnet20"])
    add_seeds(parser)
    parser.add_argument("--macs", type=float, default=0.3)
    parser.add_argument("--starts", nargs="+", default=["calibrated"], choices=STARTS)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "int8"])
    parser.add_argument("--processes", type=int, default=1)


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each network, seed, start and precision."""
    for name in options.networks:
        for seed in options.seeds:
            case = CASES[name]
            calibrated = _converted(case, options.macs, seed)
            for start in options.starts:
                for precision in options.precisions:
                    about = {"network": name, "seed": seed, "start": start, "learns in": precision}
                    yield about | _row(name, _started(calibrated, start), precision, seed, options)


def _converted(case: Case, macs: float, seed: int) -> cs.Result:
    goal, images = cs.Budget(macs=macs), case.images(seed)
    return cs.convert(case.model(), case.example, calibration=images, goal=goal, seed=seed, progress=False)


def _started(calibrated: cs.Result, start: str) -> cs.Result:
    """Return the same structure with the weights that recovery is to begin with."""
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


def _row(name: str, result: cs.Result, precision: str, seed: int, options: argparse.Namespace) -> Row:
    case, (images_of, shift) = CASES[name], UNLABELLED[name]
    images, rounding = images_of(seed), cs.Runtime(precision="int8")
    recipe = {"epochs": options.epochs, "precision": precision, "seed": seed, "transform": cs.Augment(shift=shift)}

    def int8(model: nn.Module) -> float:
        return case.metric(deployed(rounding, model, case.images(seed)))

    started = time.perf_counter()
    if options.processes > 1:
        better, extra = _shared(result, images, recipe, options)
    else:
        better, extra = cs.recover(result, images, recipe=cs.Recipe(**recipe), progress=False).model, {}
    kept = {"dense": case.metric(result.original), "before": case.metric(result.model), "after": case.metric(better)}
    both = {"int8 before": int8(result.model), "int8 after": int8(better)}
    return saving(result) | kept | both | {"minutes": (time.perf_counter() - started) / 60} | extra


def _shared(result: cs.Result, images: Tensor, recipe: dict[str, Any], options: argparse.Namespace) -> Any:
    """Recover in one process with as many threads as there are processes, then in several of one thread each."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        torch.save((result, images, recipe), f"{folder}/given.pt")
        for count, threads in ((1, options.processes), (options.processes, 1)):
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
            started = time.perf_counter()
            subprocess.run([*command, __file__, folder], check=True, env=environment, stderr=subprocess.DEVNULL)
            model = torch.load(f"{folder}/made.pt", weights_only=False)
            found[count] = (model, time.perf_counter() - started)
    (one, one_s), (several, several_s) = found.values()
    pairs = zip(one.state_dict().values(), several.state_dict().values(), strict=True)
    off = max(float((a - b).abs().max()) for a, b in pairs if a.is_floating_point())
    return several, {"time of several / one": several_s / one_s, "largest difference of a weight": off}


def _work(folder: Path) -> None:
    """Be one of the processes."""
    result, images, recipe = torch.load(folder / "given.pt", weights_only=False)
    with processes.joined():
        better = cs.recover(result, images, recipe=cs.Recipe(**recipe), progress=False)
        if processes.rank() == 0:
            torch.save(better.model, folder / "made.pt")


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
