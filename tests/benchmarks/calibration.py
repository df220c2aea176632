"""What does a network keep with one form everywhere, by the images that its weights are fitted to?

Every conv with 16 channels on both sides takes the form: `separable:2` has rank 2, `cp:0.35` that share of the conv's
MACs. Images: `own` (its own training images or crops), `photos`, `synthetic` (from the network alone), `noise`,
or `none` (the weights alone). `--leave-out` takes one ingredient of the fit away. No labels, no training.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import convsurgeon as cs
from tests import networks
from tests.benchmarks.cases import CASES, Case, add_networks, add_seeds
from tests.benchmarks.measure import saving
from tests.benchmarks.runner import Row

KINDS = {"separable": cs.DepthwiseSeparable, "blueprint": cs.Blueprint, "cp": cs.CP}
WAYS = ("own", "photos", "synthetic", "noise", "none")
INGREDIENTS = {
    "joint fit": ("convsurgeon.distill.joint.NEAR", float("inf")),
    "relu": ("convsurgeon.fit.site.ROUNDS", 0),
}
"""What may be left out: the name of a constant, and the value at which it has no effect."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the axes of the table."""
    add_networks(parser, list(CASES), ["resnet20"])
    add_seeds(parser)
    parser.add_argument("--forms", nargs="+", default=["separable:2", "blueprint:2", "cp:0.3"], metavar="KIND:RANK")
    parser.add_argument("--images", nargs="+", default=["own"], choices=WAYS)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000], help="how many images")
    parser.add_argument("--leave-out", nargs="+", default=["nothing"], choices=["nothing", *INGREDIENTS])


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each network, form, kind and count of images, ingredient and seed."""
    for name in options.networks:
        for text in options.forms:
            for way in options.images:
                for count in options.counts if way != "none" else [0]:
                    for ingredient in options.leave_out:
                        for seed in options.seeds if way != "none" else [0]:
                            about = {"network": name, "form": text, "images": f"{count} {way}", "without": ingredient}
                            with without(ingredient):
                                yield about | {"seed": seed} | _row(CASES[name], _form(text), way, count, seed)


def _form(text: str) -> cs.Form:
    kind, _, rank = text.partition(":")
    return KINDS[kind](rank=cs.Share(float(rank)) if "." in rank else int(rank))


def _row(case: Case, form: cs.Form, way: str, count: int, seed: int) -> Row:
    model = case.model()
    images = _images(case, way, count, seed)
    started = time.process_time()
    result = cs.convert(
        model,
        case.example,
        forms=[form],
        policy=cs.select.min_channels(16),
        calibration=images,
        seed=seed,
        progress=False,
    )
    seconds = time.process_time() - started
    kept = {"dense": case.metric(model), "metric": case.metric(result.model)}
    return saving(result) | kept | {"processor seconds": round(seconds, 1)}


def _images(case: Case, way: str, count: int, seed: int) -> object:
    """Return what `calibration=` takes."""
    if way in ("none", "synthetic"):
        return False if way == "none" else cs.Images(limit=count)
    own = case.images(seed)
    if way == "noise":
        return torch.randn(count, *own.shape[1:], generator=torch.Generator().manual_seed(seed))
    if case.shape[1:] != (3, 32, 32):  # digits, or crops of the photographs themselves
        return own[:count]
    return networks.cifar_calibration(count, seed) if way == "own" else _photos(count, seed)


def _photos(count: int, seed: int) -> Tensor:
    """Return crops of the photographs, scaled to 32x32, as the CIFAR networks take them."""
    generator = torch.Generator().manual_seed(seed)
    paths = sorted((networks.DATA / "photos").glob("*.jpg"))
    photos = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in paths]
    return torch.cat([_crop(photos[index % len(photos)], generator) for index in range(count)])


def _crop(photo: Tensor, generator: torch.Generator) -> Tensor:
    side = int(torch.randint(64, 257, (), generator=generator))
    top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in photo.shape[1:])
    crop = photo[None, :, top : top + side, left : left + side].float()
    small = F.interpolate(crop, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)
    return networks.normalise(small.clamp(0, 255))


def without(ingredient: str) -> contextlib.AbstractContextManager[object]:
    """Return a context in which the fit lacks one ingredient."""
    return mock.patch(*INGREDIENTS[ingredient]) if ingredient in INGREDIENTS else contextlib.nullcontext()
