"""What recovery wins back from calibrated weights, from the SVD and from random ones, under one plan, step for step.

python tests/benchmarks/bench_recover.py resnet20 [--macs 0.3] [--starts calibrated svd random] [--epochs 12]
    [--seeds 0] [--threads 2] [--precisions fp32 int8] [--save FOLDER]
python tests/benchmarks/bench_recover.py resnet20 --latency 0.45 --low-rank     # speed at equal accuracy

CIFAR networks: the 7728 training images without labels, mirrored and shifted by up to 4 pixels; top-1 on 932 test
images. DnCNN: 3000 noisy 40x40 crops of `photos/`, PSNR on the 12 images of Set12 at sigma 25; VDSR: 3000 blurred
ones, PSNR x2 on Set5. The plan comes from `Budget(macs=...)`, calibrated as in `bench_calibrated.py`, or with
`--latency` from a table that is measured first. From random weights batch norm takes new statistics; from the others it
is frozen. `speed-up` is of the whole network in onnxruntime with one thread, in turns with the original, of the inputs
that `bench_equal_accuracy.py` times. `int8` is the metric of the int8 file that the float network beside it would be
exported to; with `--precisions int8` the network learns through its rounding.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tabulate import tabulate
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.calibration.dataset import read
from convsurgeon.distill.recipe import OPTIMIZERS
from convsurgeon.forms.catalogue import BUDGET_FORMS
from convsurgeon.int8.module import IMAGES, as_int8
from tests.benchmarks.bench_budget import LOW_RANK
from tests.benchmarks.bench_calibrated import CASES
from tests.benchmarks.bench_equal_accuracy import TIMED
from tests.networks import blurred_crops, cifar_calibration, noisy_crops, pretrained

LEARNED: dict[str, tuple[Callable[[int], Tensor], cs.Augment]] = {
    "resnet20": (lambda seed: cifar_calibration(7728, seed), cs.Augment(shift=4)),
    "resnet56": (lambda seed: cifar_calibration(7728, seed), cs.Augment(shift=4)),
    "dncnn": (lambda seed: noisy_crops(3000, 40, seed), cs.Augment()),
    "vdsr": (lambda seed: blurred_crops(3000, 40, seed), cs.Augment()),
}
"""What each network learns from, and how that is varied."""

PRECISIONS = ["fp32", "int8", "fp32+int8"]
"""What a network learns in; of two, half the epochs in the second."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=list(CASES))
    parser.add_argument("--macs", type=float, default=0.3)
    parser.add_argument("--latency", type=float, help="share of the milliseconds, instead of MACs")
    parser.add_argument("--low-rank", action="store_true", help="spatial and Tucker forms as candidates, too")
    parser.add_argument("--cache", help="folder of latency tables; the user's if not given")
    parser.add_argument("--starts", nargs="+", default=["calibrated"], choices=["calibrated", "svd", "random"])
    parser.add_argument("--epochs", type=float, nargs="+", default=[12])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--features", type=float)
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS))
    parser.add_argument("--temperature", type=float, help="Kullback-Leibler divergence of softened classes instead")
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=PRECISIONS, help="to learn in")
    parser.add_argument("--save", type=Path, help="weights and plan of every recovered network go there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for seed in options.seeds for row in _rows(options, seed)]
    headers = ["network", "MACs", "start", "epochs", "learnt in", "seed", "dense", "before", "after"]
    headers += ["int8 before", "int8 after", "lr", "steps", "minutes", "speed-up"]
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".3f"))


def _rows(options: argparse.Namespace, seed: int) -> list[tuple[Any, ...]]:
    case, model = CASES[options.network], pretrained(options.network)
    learned, transform = LEARNED[options.network]
    images, example = learned(seed), torch.zeros(TIMED[options.network])
    calibrated = _converted(options, model, case.images(seed), seed)
    dense_ms, (ms,) = cs.measure_whole(model, example, [calibrated.plan], progress=False)
    seen = read(case.images(seed), cs.capture(model, example).example, IMAGES).fitted
    share = calibrated.report.after.macs / calibrated.report.before.macs
    dense = case.metric(model)
    rows = []
    for start in options.starts:
        result = _started(calibrated, start)
        before, rough = case.metric(result.model), case.metric(as_int8(result.model, seen))
        for epochs, precision in itertools.product(options.epochs, options.precisions):
            given = {name: getattr(options, name) for name in ("lr", "features", "optimizer")}
            settings = {name: value for name, value in given.items() if value is not None}
            if start == "random":
                settings["norms"] = "updated"
            if options.temperature is not None:
                settings["loss"] = _softened(options.temperature)
            began = time.perf_counter()
            settings |= {"batch_size": options.batch_size, "transform": transform, "seed": seed, "progress": False}
            better = result
            for number, one in enumerate(precision.split("+")):
                better = cs.recover(better, images, epochs=epochs / 2**number, precision=one, **settings)
            minutes = (time.perf_counter() - began) / 60
            done = better.report.recovery[-1]
            after = case.metric(better.model), rough, case.metric(as_int8(better.model, seen))
            how = (done.lr, f"{done.best_step}/{done.steps}", minutes, dense_ms / ms)
            rows.append((options.network, share, start, epochs, precision, seed, dense, before, *after, *how))
            print(rows[-1], done.before, done.after, done.trials, flush=True)
            if options.save:
                _save(options.save, f"{options.network}-{start}-{share:.2f}-{epochs:g}-{precision}-{seed}", better)
    return rows


def _converted(options: argparse.Namespace, model: nn.Module, images: Tensor, seed: int) -> cs.Result:
    example = torch.zeros(TIMED[options.network])
    settings: dict[str, Any] = {"calibration": images, "images": len(images), "seed": seed, "progress": False}
    forms = (*BUDGET_FORMS, *(LOW_RANK if options.low_rank else ()))
    if options.latency is None:
        return cs.convert(model, images[:1], forms=forms, budget=cs.Budget(macs=options.macs), **settings)
    table = cs.LatencyTable.measure(model, example, forms, cache=options.cache)
    budget = cs.Budget(latency=options.latency)
    return cs.convert(model, example, forms=forms, budget=budget, latencies=table, **settings)


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


def _softened(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Hinton et al. 2015, "Distilling the knowledge in a neural network", equation 2 on, scaled by the square."""

    def loss(given: Tensor, answer: Tensor) -> Tensor:
        got, wanted = ((values / temperature).log_softmax(1) for values in (given, answer))
        return nn.functional.kl_div(got, wanted, reduction="batchmean", log_target=True) * temperature**2

    return loss


def _save(folder: Path, name: str, result: cs.Result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.contiguous() for key, value in result.model.state_dict().items()}, folder / f"{name}.safetensors"
    )
    result.plan.save(folder / f"{name}.json", overwrite=True)


if __name__ == "__main__":
    main()
