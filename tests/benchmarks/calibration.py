"""What does a network keep with one form everywhere, by the images that its weights are fitted to?

Every conv with 16 channels on both sides takes the form: `separable:2` has rank 2, `cp:0.35` that share of the conv's
MACs. Images: `own` (its own training images or crops), `photos`, `synthetic` (from the network alone), `noise`,
or `none` (the weights alone). `--leave-out` takes one ingredient of the fit away. No labels, no training.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
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
    axes = (options.networks, options.forms, options.images, options.counts, options.leave_out, options.seeds)
    for name, text, way, count, ingredient, seed in itertools.product(*axes):
        if way == "none" and (count, seed) != (options.counts[0], options.seeds[0]):
            continue  # the same again
        images = _images(CASES[name], way, count, seed)
        about = {"network": name, "form": text, "images": _words(images, way, count), "without": ingredient}
        with without(ingredient):
            yield about | {"seed": seed} | _row(CASES[name], _form(text), images, seed)


def _form(text: str) -> cs.Form:
    kind, _, rank = text.partition(":")
    return KINDS[kind](rank=cs.Share(float(rank)) if "." in rank else int(rank))


def _row(case: Case, form: cs.Form, images: object, seed: int) -> Row:
    model = case.model()
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


def _words(images: object, way: str, count: int) -> str:
    return "none" if images is False else f"{len(images) if isinstance(images, Tensor) else count} {way}"


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
