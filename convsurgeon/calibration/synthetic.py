"""Calibration images for users who have none, made from the network alone.

    images with the statistics of photographs (`dead_leaves`)
    -> in the network's numbers (`normalisation`), with the fault that it removes if it restores images (`restoration`)
    -> changed until its batch norms are given the statistics that they hold (`inversion`)

A network without batch norms gets the first two. Nothing is downloaded; a seed gives the same images.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import torch
from torch import Tensor

from convsurgeon.base.errors import CalibrationError, describe
from convsurgeon.calibration.channels_last import to_channels_last, with_channels_first
from convsurgeon.calibration.dataset import BATCH, Calibration, hold_back, images_in
from convsurgeon.calibration.dead_leaves import draw_images
from convsurgeon.calibration.inversion import invert
from convsurgeon.calibration.normalisation import (
    Normalisation,
    Numbers,
    common_normalisations,
    find_by_norms,
    guess_from_example,
    normalisation,
    norms_in_use,
)
from convsurgeon.calibration.restoration import Restorer, enlargement, find_restorer
from convsurgeon.graph.capture import Capture, capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.model_files import Model
from convsurgeon.graph.state import undisturbed

_LOG = logging.getLogger(__name__)
_PASSES, _LEAST_PASSES = 20, 6
"""Of the inversion over all images."""
_INVERSION_MACS = 900_000_000_000
_INVERSION_IMAGES = 50 * 64
"""The inversion's cost: so many multiply-accumulates of forward passes, or 50 steps of training on 64 images."""
_RUN_PIXELS = 1 << 20
_LARGEST_RUN, _SMALLEST_RUN = 128, 4
_SIDES = 1 << 15
"""Pixels of all images' sides together: 1024 images of 32, 146 of 224, 51 of 640."""
_LEAST_IMAGES, _MOST_IMAGES = 16, 1024
_NORM_PROBES = 48
_RESTORER_PROBES, _PROBE_SIDE = 4, 64
"""Images to ask a network with, and their side where it takes other sizes than the example's."""


def synthetic_images(
    model: Model, example: object = None, limit: int = 1024, *, seed: int = 0, progress: bool = True
) -> Tensor | list[Example]:
    """Return the synthetic images that `convert` calibrates on; of a model of several inputs a list of batches.

    Args:
        model: As `convert` takes it; left as it was.
        example: Likewise; its tensors must be images of floating point or bytes, (N, C, H, W) or (N, H, W, C).
        limit: Most images to make; large images and slow networks get fewer.
        seed: Of everything that is drawn.
        progress: Whether to show a bar.

    Raises:
        CaptureError: The model does not run on the example.
        CalibrationError: An input is not an image.
    """
    seen = capture(model, example)
    made = synthesise(seen, limit, seed=seed, progress=progress)
    batches = [*made.fitted, *made.held_back]
    return torch.cat([one.tensors()[0] for one in batches]) if len(seen.example.tensors()) == 1 else batches


def synthesise(
    seen: Capture,
    limit: int,
    *,
    seed: int,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    progress: bool = True,
) -> Calibration:
    """Return at most `limit` synthetic images as a calibration set, with a note that says how they were made.

    Raises:
        CalibrationError: An input is not an image, or `mean` or `std` do not fit the channels.
    """
    places = seen.example.tensors()
    if any(one.dtype == torch.uint8 for one in places):  # scaled in the graph, which takes floating point as well
        example = seen.example.map(lambda tensor: tensor.float() if tensor.dtype == torch.uint8 else tensor)
        seen, mean, std = dataclasses.replace(seen, example=example), 0.0, 1 / 255
    _check_inputs(seen.example)
    first, last = with_channels_first(seen)
    with undisturbed(first.model):
        maker = _Maker(first, min(limit, _enough(first)), seed)
        made, note = maker.make(mean, std, progress)
    images = [to_channels_last(one) if flag else one for one, flag in zip(made, last, strict=True)]
    images = [one if place.is_floating_point() else one.round() for one, place in zip(images, places, strict=True)]
    batches = []
    for part in zip(*(one.split(maker.batch) for one in images), strict=True):
        batches.append(seen.example.with_tensors(one.to(place) for one, place in zip(part, places, strict=True)))
    return hold_back(batches, maker.fixed or 1, notes=(note,), synthetic=True)


def _check_inputs(example: Example) -> None:
    for number, tensor in enumerate(example.tensors(), start=1):
        if tensor.is_meta or not tensor.is_floating_point() or tensor.dim() != 4:
            kind = "has no values" if tensor.is_meta else f"is {str(tensor.dtype).removeprefix('torch.')}"
            shape = "x".join(map(str, tensor.shape)) or "a single number"
            raise CalibrationError(
                f"calibration: input {number} of the example ({shape}) {kind}, not an image of floating-point values; "
                "pass calibration=, or False (--calibrate none) for the weights alone"
            )


def _enough(seen: Capture) -> int:
    """Return how many images to make: fewer where they are large or the network is slow."""
    height, width = seen.example.tensors()[0].shape[2:]
    count = max(_LEAST_IMAGES, min(_MOST_IMAGES, round(_SIDES / math.sqrt(height * width))))
    if not norms_in_use(seen):
        return count
    return max(_LEAST_IMAGES, min(count, _affordable(seen) // _LEAST_PASSES))


def _affordable(seen: Capture) -> int:
    """Return how many images may go through the network in the inversion, all passes together."""
    each = seen.cost.macs / max(1, images_in(seen.example))
    return max(_INVERSION_IMAGES, int(_INVERSION_MACS / max(1.0, each)))


class _Maker:
    """Makes one network's images; its channels come first.

    Attributes:
        batch: Images in a batch of the network.
        fixed: The same where the network takes no other number.
    """

    def __init__(self, seen: Capture, count: int, seed: int) -> None:
        self.seen, self.model, self.like, self.seed = seen, seen.model, seen.example, seed
        self.inputs = self.like.tensors()
        self.norms = norms_in_use(seen)
        self.generator = torch.Generator().manual_seed(seed)
        self.batch = self._batch()
        self.fixed = None if self.batch == BATCH else self.batch
        self.count = max(2, -(-count // self.fixed)) * self.fixed if self.fixed else count

    def make(self, mean: Numbers | None, std: Numbers | None, progress: bool) -> tuple[list[Tensor], str]:
        """Return images of every input, and a note that says how they were made."""
        stated = mean is not None or std is not None
        scales = [normalisation(mean, std, one.shape[1]) for one in self.inputs] if stated else []
        notes: list[str] = []
        restorer, times = self._restorer(scales)
        if restorer is not None:
            drawn = self._draw(self.inputs[0], times)
            pixels, scales = [restorer.spoil(drawn, self.generator)], [restorer.scale]
            notes.append(f"with the faults that the network removes: {', '.join(restorer.faults)}")
        else:
            pixels = self._draw_inputs()
            scales = scales or [self._scale(place, one) for place, one in enumerate(pixels)]
        if self.norms:
            pixels, words = self._invert(pixels, scales, progress)
            notes.append(words)
        elif not notes and not stated:
            notes.append("guessed from the example, because the network has no trained batch norms")
        names = "; ".join(dict.fromkeys(scale.name for scale in scales))
        note = (
            f"No images were given, so {self.count} synthetic ones were made, in {'; '.join([names, *notes])}. "
            "A few hundred real images are the safer choice: pass calibration= (--calibrate)."
        )
        return [scale.apply(one) for scale, one in zip(scales, pixels, strict=True)], note

    def _draw(self, tensor: Tensor, times: int = 1) -> Tensor:
        """Return natural images for an input, `times` as large."""
        channels, height, width = tensor.shape[1:]
        return draw_images(self.count, channels, height * times, width * times, self.generator)

    def _draw_inputs(self) -> list[Tensor]:
        """Return natural images for every input; inputs of one shape show the same scenes, shifted."""
        scenes: dict[torch.Size, Tensor] = {}
        for tensor in self.inputs:
            if tensor.shape not in scenes:
                scenes[tensor.shape] = self._draw(tensor)
        return [scenes[one.shape].roll((at, 2 * at), (2, 3)) for at, one in enumerate(self.inputs)]

    def _scale(self, place: int, pixels: Tensor) -> Normalisation:
        if self.norms:
            return find_by_norms(self.model, self.norms, pixels[: self.fixed or _NORM_PROBES], self.like, place)
        return guess_from_example(self.inputs[place].detach().float())

    def _invert(self, pixels: list[Tensor], scales: list[Normalisation], progress: bool) -> tuple[list[Tensor], str]:
        """Return pixels changed towards the batch norms' statistics, if the network lets gradients through."""
        largest = max(tensor.shape[2:].numel() for tensor in self.inputs)
        batch = self.fixed or min(self.count, max(_SMALLEST_RUN, min(_LARGEST_RUN, _RUN_PIXELS // largest)))
        passes = min(_PASSES, max(1, _affordable(self.seen) // self.count))
        settings: dict[str, Any] = {"batch": batch, "passes": passes, "seed": self.seed, "progress": progress}
        try:
            found, before, after = invert(self.model, self.norms, pixels, scales, self.like, **settings)
        except RuntimeError as error:
            _LOG.warning("synthetic images are not fitted to the batch norms: %s", describe(error))
            return pixels, "not fitted to its batch norms, because the network lets no gradients through"
        return found, f"fitted to {len(self.norms)} batch norms (divergence {before:.3f} before, {after:.3f} after)"

    def _restorer(self, scales: list[Normalisation]) -> tuple[Restorer | None, int]:
        """Return what the network restores, if it does, and how many times larger its output is."""
        given = self.inputs[0]
        times = enlargement(given, self._run(images_in(self.like))) if len(self.inputs) == 1 else 0
        if not times:
            return None, 0
        channels, height, width = given.shape[1:]
        low, narrow = min(height, _PROBE_SIDE), min(width, _PROBE_SIDE)
        small = torch.rand(
            self.fixed or _RESTORER_PROBES,
            channels,
            low,
            narrow,
            generator=self._probing(),
            dtype=torch.float32,
            device="cpu",
        ).to(given)
        try:
            if enlargement(small, self.model(small.clone())) == times:
                height, width = low, narrow
        except Exception as error:  # whatever a forward raises for a size that it does not take
            _LOG.info("the model takes images of %dx%d only: %s", height, width, describe(error))
        probes = draw_images(len(small), channels, height * times, width * times, self._probing())
        return find_restorer(
            self.model, probes, times, scales or common_normalisations(channels), given, self.seed
        ), times

    def _batch(self) -> int:
        """Return the images per batch: 64, or the example's own number where the model takes no other."""
        own = images_in(self.like)
        for size in (own + 1, own):
            try:
                self._run(size)
            except Exception as error:  # whatever a forward raises for a batch that it does not take
                failure = describe(error)
                _LOG.info("the model does not run on %d images: %s", size, failure)
            else:
                return BATCH if size > own else own
        raise CalibrationError(f"calibration: the model does not run on random images ({failure}); pass calibration=")

    def _run(self, size: int) -> Any:
        """Return what the model gives for noise."""
        noise = [
            torch.rand(size, *one.shape[1:], generator=self._probing(), dtype=torch.float32, device="cpu").to(one)
            for one in self.inputs
        ]
        return self.like.with_tensors(noise).run(self.model)

    def _probing(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + 1)
