"""Calibration images for users who have none, made from the network alone.

    images with the statistics of photographs (`dead_leaves`)
    -> in the network's numbers (`normalisation`), with the fault that it removes if it restores images (`restoration`)
    -> changed until its batch norms are given the statistics that they hold (`inversion`)

A network without batch norms gets the first two. Nothing is downloaded; a seed gives the same images.
"""

from __future__ import annotations

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
from convsurgeon.calibration.norm_statistics import trained_norms
from convsurgeon.calibration.normalisation import (
    Normalisation,
    Numbers,
    common_normalisations,
    find_by_norms,
    guess_from_example,
    normalisation,
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
    model: Model,
    example: object = None,
    limit: int = 1024,
    seed: int = 0,
    *,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    progress: bool = True,
) -> Tensor | list[Example]:
    """Return synthetic images that a pretrained network takes for its own, as `convert` calibrates on.

    Args:
        model: Any module that runs on the example, or the path of an ONNX file; left as it was.
        example: As `convert` takes it; every tensor must be floating-point images, (N, C, H, W) or (N, H, W, C).
        limit: Most images to make; large images and slow networks get fewer.
        seed: Of everything that is drawn.
        mean: Subtracted from pixels in [0, 1]; found from the network where neither it nor `std` is given.
        std: Divides them then.
        progress: Whether to show a bar.

    Raises:
        CaptureError: The model does not run on the example.
        CalibrationError: An input is not an image, or `mean` or `std` have another number of values.

    Returns:
        A tensor in the example's layout and dtype and on its device; for a model of several images a list of batches.
    """
    seen = capture(model, example)
    made = synthesise(seen, limit, seed=seed, mean=mean, std=std, progress=progress)
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
    """Return at most `limit` synthetic images as a calibration set with a note that says what they are.

    Raises:
        CalibrationError: As `synthetic_images`.
    """
    if limit < 1:
        raise CalibrationError(f"limit={limit}: pass 1 or more")
    _check_inputs(seen.example)
    first, last = with_channels_first(seen)
    with undisturbed(first.model):
        maker = _Maker(first, min(limit, _enough(first)), seed, mean, std, progress)
        images, note = maker.make()
    images = [to_channels_last(one) if flag else one for one, flag in zip(images, last, strict=True)]
    parts = zip(*(one.split(maker.batch) for one in images), strict=True)
    places = seen.example.tensors()
    batches = [
        seen.example.with_tensors(one.to(place) for one, place in zip(part, places, strict=True)) for part in parts
    ]
    return hold_back(batches, maker.batch if maker.batch != BATCH else 1, notes=(note,), synthetic=True)


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
    count = max(_LEAST_IMAGES, min(_MOST_IMAGES, round(_SIDES / max(math.sqrt(height * width), 1.0))))
    if not trained_norms(seen.model):
        return count
    return max(_LEAST_IMAGES, min(count, _affordable(seen) // _LEAST_PASSES))


def _affordable(seen: Capture) -> int:
    """Return how many images may go through the network in the inversion, all passes together."""
    each = seen.cost.macs / max(1, images_in(seen.example))
    return max(_INVERSION_IMAGES, int(_INVERSION_MACS / max(1.0, each)))


class _Maker:
    """Makes one network's images; its channels come first."""

    def __init__(
        self, seen: Capture, count: int, seed: int, mean: Numbers | None, std: Numbers | None, progress: bool
    ) -> None:
        self.model, self.like, self.progress = seen.model, seen.example, progress
        self.inputs = seen.example.tensors()
        self.seed, self.generator = seed, torch.Generator().manual_seed(seed)
        self.norms = trained_norms(seen.model)
        self.stated = mean is not None or std is not None
        self.scales = [normalisation(mean, std, one.shape[1]) for one in self.inputs] if self.stated else []
        self.batch = self._batch()
        self.fixed = None if self.batch == BATCH else self.batch
        self.count = max(2, -(-count // self.fixed)) * self.fixed if self.fixed else count
        self.passes = min(_PASSES, max(1, _affordable(seen) // self.count))

    def make(self) -> tuple[list[Tensor], str]:
        """Return images of every input, and how they were made."""
        notes: list[str] = []
        restorer = self._restorer()
        if restorer is not None:
            pixels = [self._restorer_pixels(restorer)]
            notes.append(f"with the faults that the network removes: {', '.join(restorer.faults)}")
        else:
            pixels = self._pixels()
        if self.norms:
            pixels, words = self._inverted(pixels)
            notes.append(words)
        elif restorer is None and not self.stated:
            notes.append("guessed from the example, because the network has no batch norms")
        names = "; ".join(dict.fromkeys(scale.name for scale in self.scales))
        note = (
            f"No images were given, so {self.count} synthetic ones were made, in {'; '.join([names, *notes])}. "
            "A few hundred real images are the safer choice: pass calibration= (--calibrate)."
        )
        return [scale.apply(one) for scale, one in zip(self.scales, pixels, strict=True)], note

    def _batch(self) -> int:
        """Return the images per batch: 64, or the example's own number where the model takes no other."""
        own = images_in(self.like)
        try:
            self._run(own + 1)
        except Exception as error:  # whatever a forward raises for a batch that it does not take
            _LOG.info("the model takes batches of %d only: %s", own, describe(error))
        else:
            return BATCH
        try:
            self._run(own)
        except Exception as error:
            raise CalibrationError(
                f"calibration: the model does not run on synthetic images ({describe(error)}); pass calibration="
            ) from error
        return own

    def _run(self, size: int) -> Any:
        """Return what the model gives for noise."""
        noise = [torch.rand(size, *one.shape[1:], generator=self._probing()).to(one) for one in self.inputs]
        return self.like.with_tensors(noise).run(self.model)

    def _probing(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + 1)

    def _restorer(self) -> Restorer | None:
        """Return what the network restores, if it does."""
        if len(self.inputs) != 1:
            return None
        given = self.inputs[0]
        times = enlargement(given, self._run(images_in(self.like)))
        if not times:
            return None
        scales = self.scales or common_normalisations(given.shape[1])
        found = find_restorer(self.model, self._probes(times), times, scales, given, self.seed)
        if found is not None:
            self.scales = [found.scale]
        return found

    def _probes(self, times: int) -> Tensor:
        """Return images `times` larger than what the network takes, small ones if it takes them."""
        given = self.inputs[0]
        count, channels = self.fixed or _RESTORER_PROBES, given.shape[1]
        height, width = given.shape[2:]
        low, narrow = min(height, _PROBE_SIDE), min(width, _PROBE_SIDE)
        small = torch.rand(count, channels, low, narrow, generator=self._probing()).to(given)
        try:
            if enlargement(small, self.model(small.clone())) == times:
                height, width = low, narrow
        except Exception as error:  # whatever a forward raises for a size that it does not take
            _LOG.info("the model takes images of %dx%d only: %s", height, width, describe(error))
        return draw_images(count, channels, height * times, width * times, self._probing())

    def _restorer_pixels(self, restorer: Restorer) -> Tensor:
        _, channels, height, width = self.inputs[0].shape
        times = restorer.enlarges
        pixels = draw_images(self.count, channels, height * times, width * times, self.generator)
        return restorer.spoil(pixels, self.generator)

    def _pixels(self) -> list[Tensor]:
        """Return pixels of every input, and set their normalisations; inputs of one shape show one scene, shifted."""
        drawn: dict[tuple[int, ...], Tensor] = {}
        found = []
        for place, tensor in enumerate(self.inputs):
            shape = (channels, height, width) = tuple(tensor.shape[1:])
            if shape not in drawn:
                drawn[shape] = draw_images(self.count, channels, height, width, self.generator)
            if len(self.scales) <= place:
                self.scales.append(self._scale(place, drawn[shape]))
            found.append(drawn[shape].roll((place, 2 * place), (2, 3)))
        return found

    def _scale(self, place: int, pixels: Tensor) -> Normalisation:
        if self.norms:
            return find_by_norms(self.model, self.norms, pixels[: self.fixed or _NORM_PROBES], self.like, place)
        return guess_from_example(self.inputs[place].detach().float())

    def _inverted(self, pixels: list[Tensor]) -> tuple[list[Tensor], str]:
        """Return pixels changed towards the batch norms' statistics, if the network lets gradients through."""
        largest = max(tensor.shape[2:].numel() for tensor in self.inputs)
        size = max(_SMALLEST_RUN, min(_LARGEST_RUN, _RUN_PIXELS // largest))
        settings: dict[str, Any] = {"passes": self.passes, "seed": self.seed, "progress": self.progress}
        batch = self.fixed or min(size, self.count)
        try:
            found, before, after = invert(
                self.model, self.norms, pixels, self.scales, self.like, batch=batch, **settings
            )
        except RuntimeError as error:
            _LOG.warning("synthetic images are not fitted to the batch norms: %s", describe(error))
            return pixels, "not fitted to its batch norms, because the network lets no gradients through"
        return found, f"fitted to {len(self.norms)} batch norms (divergence {before:.3f} before, {after:.3f} after)"
