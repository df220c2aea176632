"""What each ingredient of the fit is worth: ResNet-20, rank 2, every conv but the stem, 1000 images, top-1 on 932.

python tests/benchmarks/bench_starts.py [--seeds 0 1 2]     (bsconv for its row, if it is installed)
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
from tabulate import tabulate
from torch import Tensor, fx, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.fit import in_order, sensitivity, site
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


VARIANTS: dict[str, list[Patch]] = {
    "fit, inputs from the original": [_from_original],
    "fit, all outputs count alike": [_alike],
    "fit, blind to the ReLU": [_no_relu],
    "fit": [],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = pretrained("resnet20")
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
            for patch in patches:
                stack.enter_context(patch())  # type: ignore[arg-type]
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
    return name, form.label, statistics.mean(found), spread, ", ".join(f"{value:.2f}" for value in found)


if __name__ == "__main__":
    main()
