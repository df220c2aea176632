"""Images to calibrate on where none are at hand: made up from the network alone.

    drawn with natural statistics (`drawing`) -> in the network's own numbers (`scale`), with the fault that it mends if
    it restores images (`restoring`) -> changed until its batch norms see what they know (`inversion`)

Where a network has no batch norms the first two are all there is. Nothing is loaded; a seed gives the same images.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from convsurgeon.base import processes as world
from convsurgeon.base.errors import CalibrationError, describe
from convsurgeon.calibration.channels_last import as_taken, upright
from convsurgeon.calibration.dataset import BATCH, Calibration, images_in, shared_out
from convsurgeon.calibration.dead_leaves import drawn
from convsurgeon.calibration.inversion import Inverted, inverted
from convsurgeon.calibration.norm_statistics import informed
from convsurgeon.calibration.restoration import IMAGES, SIDE, Restorer, enlargement, restorer
from convsurgeon.calibration.value_range import Scale, common, from_example, from_norms, stated
from convsurgeon.graph.capture import Capture, capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.model_files import Model
from convsurgeon.graph.state import undisturbed

PASSES = 20
"""Over the images, towards the batch norms' statistics."""

_LEAST_PASSES = 6
_PASSED_MACS = 900_000_000_000
_PASSED_IMAGES = 50 * 64
"""How long that may take: so many multiply-accumulates of forward passes, or 50 steps of training on 64 images."""

_SIDES = 1 << 15
"""Pixels of all images' sides together: 1024 images of 32, 146 of 224, 51 of 640."""

_LEAST_IMAGES, _MOST_IMAGES = 16, 1024
_RUN_PIXELS = 1 << 20
_LARGEST_RUN, _SMALLEST_RUN = 128, 4
_PROBES = 48
"""Drawn images that the scale is found with."""


@dataclasses.dataclass(frozen=True)
class MadeUp:
    """Images of every input as the model takes them, the batch it runs on, and how they came about."""

    images: tuple[Tensor, ...]
    batch: int
    notes: tuple[str, ...]

    def batches(self, like: Example) -> list[Example]:
        """In batches of the model's; what is left over is left out where it takes no others."""
        found = []
        for parts in zip(*(one.split(self.batch) for one in self.images), strict=True):
            numbered = iter(parts)
            found.append(like.map(lambda tensor, numbered=numbered: next(numbered).to(tensor)))  # type: ignore[misc]
        return found


def synthetic_images(
    model: Model,
    example: object = None,
    n: int | None = None,
    seed: int = 0,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    progress: bool = True,
) -> Tensor | list[Example]:
    """Makes up images that a pretrained network takes for its own; `convert` does so where it is given none.

    They are drawn (dead leaves, shading, noise that falls with the frequency), brought into the numbers that the
    network takes, and then changed until its batch norms see the means and variances that they know. A network without
    batch norms that restores images, such as a denoiser, gets the fault that it mends. The model is left as it was.

    Args:
        model: any module that runs on the example, or the path of an ONNX file.
        example: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`; all of its tensors must
            be images of floating point, (N, C, H, W) or (N, H, W, C). Of its values only their range is looked at.
        n: how many images; by default as many as their side goes into 32768, from 16 to 1024, and fewer for a network
            that takes long.
        seed: of everything that is drawn.
        mean: subtracted from every channel of pixels from 0 to 1; found out where neither it nor `std` is given.
        std: divides every channel then.
        progress: whether to show a bar.

    Raises:
        CaptureError: the model does not run on the example.
        CalibrationError: an input is no image, or `mean` or `std` have another number of values.

    Returns:
        A tensor in the example's layout and dtype and on its device; of a model of several images a list of batches, as
        `calibration=` takes them.

    Sources:
        Cai et al. 2020, "ZeroQ"; Yin et al. 2020, "Dreaming to distill"; Baradad et al. 2021, "Learning to see by
        looking at noise"; Lee, Mumford and Huang 2001, "Occlusion models for natural images".
    """
    seen = capture(model, example)
    made = _made(seen, n, seed, mean, std, progress)
    tensors = seen.example.tensors()
    return made.images[0].to(tensors[0]) if len(tensors) == 1 else made.batches(seen.example)


def made_up(
    seen: Capture,
    images: int,
    seed: int,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    progress: bool = True,
) -> Calibration:
    """At most so many made-up images, as calibration data that say what they are.

    Raises:
        CalibrationError: as `synthetic_images`.
    """
    made = _made(seen, min(images, _enough(seen)), seed, mean, std, progress)
    count, batch = len(made.images[0]), made.batch
    held_back = max(1, min(round(count * 0.2), 128, count - 1))
    held_back = max(batch, held_back // batch * batch) if batch != BATCH else held_back
    return shared_out(made.batches(seen.example), count, min(held_back, count - 1), made.notes, made_up=True)


def _made(
    seen: Capture, n: int | None, seed: int, mean: Sequence[float], std: Sequence[float], progress: bool
) -> MadeUp:
    count = _enough(seen) if n is None else n
    if count < 1:
        raise CalibrationError(f"n={count}: pass at least 1")
    _check(seen.example)
    first, turned = upright(seen)
    with undisturbed(first.model):
        made = _Maker(first, count, seed, mean, std, progress).made()
    return dataclasses.replace(made, images=as_taken(made.images, turned))


def _check(example: Example) -> None:
    """Refuses inputs that are no images."""
    for number, tensor in enumerate(example.tensors(), start=1):
        if tensor.is_meta or not tensor.is_floating_point() or tensor.dim() != 4:
            kind = "has no values" if tensor.is_meta else f"is {str(tensor.dtype).removeprefix('torch.')}"
            shape = "x".join(map(str, tensor.shape)) or "a single number"
            raise CalibrationError(
                f"calibration: input {number} of the example ({shape}) {kind}, no image of floating point that could "
                "be made up; pass calibration=, or False (--calibrate none) for the weights alone"
            )


def _enough(seen: Capture) -> int:
    """How many images by default."""
    tensor = upright(seen)[0].example.tensors()[0]
    side = math.sqrt(tensor.shape[-1] * tensor.shape[-2]) if tensor.dim() == 4 else 1.0
    count = max(_LEAST_IMAGES, min(_MOST_IMAGES, round(_SIDES / max(side, 1.0))))
    if not informed(seen.model):
        return count
    return max(_LEAST_IMAGES, min(count, _affordable(seen) // _LEAST_PASSES))


def _affordable(seen: Capture) -> int:
    """Images that may go through the network, all passes together."""
    each = seen.cost.macs / max(1, images_in(seen.example))
    return max(_PASSED_IMAGES, int(_PASSED_MACS / max(1.0, each)))


class _Maker:
    """One network's images."""

    def __init__(
        self, seen: Capture, count: int, seed: int, mean: Sequence[float], std: Sequence[float], progress: bool
    ) -> None:
        self.model, self.like, self.progress = seen.model, seen.example, progress
        self.inputs = seen.example.tensors()
        self.seed, self.generator = seed, torch.Generator().manual_seed(seed)
        self.norms = informed(seen.model)
        self.stated = bool(mean or std)
        self.scales = [stated(mean, std, one.shape[1]) for one in self.inputs] if self.stated else []
        self.batch = self._batch()
        self.count = count if self.batch == BATCH else max(2, -(-count // self.batch)) * self.batch
        self.passes = min(PASSES, max(1, _affordable(seen) // self.count))

    def made(self) -> MadeUp:
        notes: list[str] = []
        mends = self._restorer()
        images = self._restored(mends) if mends is not None else self._plain()
        if mends is not None:
            notes.append(f"with what it mends: {', '.join(fault.words for fault in mends.faults)}")
        if self.norms and self.passes:
            images, words = self._inverted(images)
            notes.append(words)
        elif mends is None and not self.stated:
            notes.append("the network has no batch norms that would say more, so the scale is a guess from the example")
        images = [world.added(one if world.rank() == 0 else torch.zeros_like(one))[0] for one in images]
        scales = "; ".join(dict.fromkeys(scale.words for scale in self.scales))
        text = (
            f"No images were given, so {self.count} were made up: drawn with natural statistics in "
            f"{'; '.join([scales, *notes])}. Images of the network's own kind, a few hundred, are the safer choice: "
            "pass calibration= (--calibrate)."
        )
        return MadeUp(tuple(images), self.batch, (text,))

    def _restorer(self) -> Restorer | None:
        """What the network restores, if it does."""
        if len(self.inputs) != 1:
            return None
        given = self.inputs[0]
        times = enlargement(given, self._output())
        if not times:
            return None
        scales = self.scales or common(given.shape[1])
        found = restorer(self.model, self._probes(times), times, scales, given, self.seed)
        if found is not None:
            self.scales = [found.scale]
        return found

    def _probes(self, times: int) -> Tensor:
        """Drawn images `times` larger than what the network takes, small ones if it does."""
        given = self.inputs[0]
        count, channels = self._fixed() or IMAGES, given.shape[1]
        height, width = given.shape[2:]
        low, narrow = min(height, SIDE), min(width, SIDE)
        with suppress(Exception):  # whatever a forward raises for a size that it does not take
            small = torch.rand(count, channels, low, narrow, generator=self._probing()).to(given)
            if enlargement(small, self.model(small.clone())) == times:
                height, width = low, narrow
        return drawn(count, channels, height * times, width * times, self._probing())

    def _restored(self, mends: Restorer) -> list[Tensor]:
        _, channels, height, width = self.inputs[0].shape
        pixels = drawn(self.count, channels, height * mends.enlarges, width * mends.enlarges, self.generator)
        return [mends.inputs(pixels, self.generator)]

    def _plain(self) -> list[Tensor]:
        """Drawn images in the network's numbers; inputs of one shape show one scene, a little apart."""
        pixels: dict[tuple[int, ...], Tensor] = {}
        images = []
        for place, tensor in enumerate(self.inputs):
            shape = (channels, height, width) = tuple(tensor.shape[1:])
            if shape not in pixels:
                pixels[shape] = drawn(self.count, channels, height, width, self.generator)
            if len(self.scales) <= place:
                self.scales.append(self._scale(place, pixels[shape]))
            images.append(self.scales[place].apply(pixels[shape].roll((place, 2 * place), (2, 3))))
        return images

    def _scale(self, place: int, pixels: Tensor) -> Scale:
        if self.norms:
            probes = pixels[: self._fixed() or _PROBES]
            return from_norms(self.model, self.norms, probes, self.like, place)
        return from_example(self.inputs[place].detach().float())

    def _inverted(self, images: list[Tensor]) -> tuple[list[Tensor], str]:
        """Towards the batch norms' statistics, as far as the network lets gradients through."""
        units = [scale.unit(one) for scale, one in zip(self.scales, images, strict=True)]
        bounds = [self._bounds(scale, one) for scale, one in zip(self.scales, images, strict=True)]
        pixels = max(tensor.shape[2:].numel() for tensor in self.inputs)
        size = max(_SMALLEST_RUN, min(_LARGEST_RUN, _RUN_PIXELS // pixels))
        size = self._fixed() or min(size, self.count)
        try:
            done: Inverted = inverted(
                self.model, self.norms, images, units, bounds, self.like, self.passes, size, self.seed, self.progress
            )
        except RuntimeError as error:
            warnings.warn(f"calibration: no gradients ({describe(error)}); images stay as drawn", stacklevel=2)
            return images, "not fitted to its batch norms, for the network lets no gradients through"
        words = f"fitted to {len(self.norms)} batch norms (from {done.before:.3f} to {done.after:.3f} apart)"
        return list(done.images), words

    def _bounds(self, scale: Scale, images: Tensor) -> tuple[Tensor, Tensor]:
        """Black and white; wider where the images are so already, as with noise on them."""
        low, high = scale.bounds(images)
        axes = (0, 2, 3)
        return torch.minimum(low, images.amin(axes, keepdim=True)), torch.maximum(high, images.amax(axes, keepdim=True))

    def _batch(self) -> int:
        """Images per batch: 64, or the example's own number where the model takes no other."""
        own = images_in(self.like)
        for size in dict.fromkeys((own + 1, own)):
            try:
                self._run(size)
            except Exception as error:  # whatever a forward raises for a batch that it does not take
                if size == own:
                    raise CalibrationError(
                        f"calibration: the model does not run on made-up images ({describe(error)}); pass calibration="
                    ) from error
            else:
                return BATCH if size != own else own
        raise AssertionError("one of the two returned or raised")

    def _fixed(self) -> int | None:
        return None if self.batch == BATCH else self.batch

    def _run(self, size: int) -> Any:
        def noise(tensor: Tensor) -> Tensor:
            return torch.rand(size, *tensor.shape[1:], generator=self._probing()).to(tensor)

        return self.like.map(noise).run(self.model)

    def _output(self) -> Any:
        return self._run(images_in(self.like))

    def _probing(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + 1)
