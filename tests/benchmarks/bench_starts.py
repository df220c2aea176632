"""What each ingredient of the fit is worth: ResNet-20, 1000 images, top-1 on 932.

python tests/benchmarks/bench_starts.py [--seeds 0 1 2]                    (bsconv for its row, if it is installed)
python tests/benchmarks/bench_starts.py --budgets 0.3 0.25 0.2 [--seeds 0 1 2]

Rank 2 and every conv but the stem; with `--budgets` plans within shares of the MACs, each fitted site by site and then
together, too: seconds of the whole of a conversion by that plan, with two threads or `OMP_NUM_THREADS`.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tabulate import tabulate
from torch import Tensor, fx, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.distill import reconstruct
from convsurgeon.fit import sensitivity, site
from convsurgeon.fit import sequential as in_order
from tests.networks import cifar_calibration, cifar_top1, pretrained

Patch = Callable[[], object]


def _from_original() -> object:
    def inputs(job: in_order.Job, source: fx.Node) -> Sequence[Tensor]:
        values: Sequence[Tensor] = job.runners[0].of(source)
        return values

    return mock.patch.object(in_order.Job, "inputs", inputs)


def _alike() -> object:
    def metrics(model: nn.Module, names: Iterable[str], *_: object) -> dict[str, Tensor]:
        convs = {name: model.get_submodule(name) for name in names}
        return {name: torch.eye(sensitivity._outputs(conv), dtype=torch.float64) for name, conv in convs.items()}

    return mock.patch.object(sensitivity, "metrics", metrics)


def _no_relu() -> object:
    return mock.patch.object(site, "ROUNDS", 0)


def _one_by_one() -> object:
    return mock.patch.object(reconstruct, "NEAR", math.inf)


VARIANTS: dict[str, list[Patch]] = {
    "fit, inputs from the original": [_from_original, _one_by_one],
    "fit in order, all outputs count alike": [_alike, _one_by_one],
    "fit in order, blind to the ReLU": [_no_relu, _one_by_one],
    "fit in order": [_one_by_one],
    "fit in order, then together": [],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=float, nargs="+", help="shares of the MACs")
    options = parser.parse_args()
    model = pretrained("resnet20")
    if options.budgets:
        rows = [row for share in options.budgets for row in _planned(model, share, options.seeds)]
        print(tabulate(rows, ["budget", "weights", "mean", "seconds", "seeds"], "pipe", floatfmt=".2f"))
        return
    torch.set_num_threads(1)
    rows = [_random(model), *(_weights(model, form) for form in _forms())]
    for name, patches in VARIANTS.items():
        for form in _forms():
            rows.append(_fitted(model, form, name, patches, options.seeds))
            print(rows[-1], flush=True)
    print(tabulate(rows, ["weights", "form", "mean", "spread", "seeds"], "pipe", floatfmt=".2f"))


def _forms() -> list[cs.Form]:
    return [cs.DepthwiseSeparable(rank=2), cs.Blueprint(rank=2)]


def _random(model: nn.Module) -> tuple[object, ...]:
    """What bsconv 0.4 makes of the network: the structure, with new weights."""
    try:
        replacers = importlib.import_module("bsconv.pytorch.replacers")
    except ImportError:
        return "bsconv, random", "blueprint, not installed", None, None, ""
    torch.manual_seed(0)
    replaced = replacers.BSConvU_Replacer().apply(copy.deepcopy(model))
    for name, conv in model.named_modules():  # the network reads an attribute that the new modules lack
        if isinstance(conv, nn.Conv2d):
            setattr(replaced.get_submodule(name), "out_channels", conv.out_channels)  # noqa: B010
    return "bsconv 0.4, random", "blueprint", cifar_top1(replaced.eval()), 0.0, ""


def _weights(model: nn.Module, form: cs.Form) -> tuple[object, ...]:
    done = cs.convert(
        model,
        cifar_calibration(1),
        forms=[form],
        policy=cs.min_channels(16),
        allow_growth=True,
        progress=False,
        calibration=False,
    )
    return "SVD of the weights", form.label, cifar_top1(done.model), 0.0, ""


def _fitted(model: nn.Module, form: cs.Form, name: str, patches: list[Patch], seeds: list[int]) -> tuple[object, ...]:
    found = []
    for seed in seeds:
        images = cifar_calibration(1000, seed)
        with ExitStack() as stack:
            _patched(stack, patches)
            result = cs.convert(
                model,
                images[:1],
                forms=[form],
                policy=cs.min_channels(16),
                allow_growth=True,
                calibration=images,
                images=1000,
                seed=seed,
                progress=False,
            )
        found.append(cifar_top1(result.model))
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    return name, form.label, statistics.mean(found), spread, _listed(found)


def _planned(model: nn.Module, share: float, seeds: list[int]) -> Iterator[tuple[object, ...]]:
    """One plan per seed, fitted site by site and together."""
    given = {seed: cifar_calibration(1000, seed) for seed in seeds}
    how: dict[str, Any] = {"images": 1000, "progress": False}
    plans = {
        seed: cs.convert(model, images[:1], budget=cs.Budget(macs=share), calibration=images, seed=seed, **how).plan
        for seed, images in given.items()
    }
    for name in ("fit in order", "fit in order, then together"):
        found, started = [], time.perf_counter()
        for seed, images in given.items():
            with ExitStack() as stack:
                _patched(stack, VARIANTS[name])
                result = cs.carry_out(model, plans[seed], images[:1], calibration=images, seed=seed, **how)
            found.append(cifar_top1(result.model))
        seconds = (time.perf_counter() - started) / len(seeds)
        yield share, name, statistics.mean(found), seconds, _listed(found)


def _patched(stack: ExitStack, patches: list[Patch]) -> None:
    for patch in patches:
        stack.enter_context(patch())  # type: ignore[arg-type]


def _listed(found: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in found)


if __name__ == "__main__":
    main()
