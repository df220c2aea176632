"""Networks that restore images: denoisers, and super-resolution of both kinds. They say what they were trained on.

A network of one image in and one out, as large or some times as large, is shown drawn images with a fault: noise of
some strength, or the blur of having been made smaller. Where what comes out is nearer to the image without the fault
than what went in, the network was made for it, and the images to calibrate on are to have that fault. The same question
tells the scale of its pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsurgeon.calibration.value_range import Scale

IMAGES = 4
SIDE = 64
"""Drawn images to ask with, and their side where the network takes other sizes than the example's."""

_BETTER = 0.9
"""Share of a fault's squared error that has to go for it to be believed: at least a tenth."""

_ALIKE = 2.0
"""Times the least share of a fault that is left, up to which others are taken too."""

_NOISES = (5, 10, 15, 25, 35, 50, 75)
_BLURS = (2, 3, 4)


@dataclass(frozen=True)
class Fault:
    """What is wrong with an image, in words, and how it is done: (images in [0, 1], random numbers) -> images."""

    words: str
    spoil: Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Restorer:
    """The scale of a network's pixels, the faults it mends, and how many times larger its output is."""

    scale: Scale
    faults: tuple[Fault, ...]
    enlarges: int

    def inputs(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Images (N, C, H, W) with a fault each, in turn, of pixels (N, C, H * enlarges, W * enlarges)."""
        parts = [fault.spoil(pixels[at :: len(self.faults)], generator) for at, fault in enumerate(self.faults)]
        images = torch.empty(len(pixels), *parts[0].shape[1:])
        for at, part in enumerate(parts):
            images[at :: len(self.faults)] = part
        return self.scale.apply(images)


def enlargement(given: Tensor, output: Any) -> int:
    """How many times larger an image comes out than it went in: 1 for as large, 0 for no image."""
    if not isinstance(output, Tensor) or output.dim() != 4 or output.shape[:2] != given.shape[:2]:
        return 0
    times = output.shape[2] // given.shape[2]
    return times if times in (1, 2, 3, 4, 8) and output.shape[2:] == tuple(s * times for s in given.shape[2:]) else 0


def restorer(
    model: nn.Module, pixels: Tensor, enlarges: int, scales: Sequence[Scale], like: Tensor, seed: int
) -> Restorer | None:
    """What a network restores; None if nothing.

    Args:
        model: in eval mode, of one image in and one out.
        pixels: drawn, (N, C, H * enlarges, W * enlarges) in [0, 1].
        enlarges: of `enlargement`.
        scales: to be tried.
        like: the example, for dtype and device.
        seed: of the noise.
    """
    faults = _noise() + _blur() if enlarges == 1 else [_smaller(enlarges)]
    left: dict[tuple[int, int], float] = {}
    for number, fault in enumerate(faults):
        spoilt = fault.spoil(pixels, torch.Generator().manual_seed(seed))
        before = (_enlarged(spoilt, enlarges) - pixels).square().sum()
        for which, scale in enumerate(scales):
            out = model(scale.apply(spoilt).to(like)).float().cpu()
            after = (scale.pixels(out) - pixels).square().sum()
            left[which, number] = float(after / before)
    (which, _), least = min(left.items(), key=lambda pair: pair[1])
    if not least < _BETTER:
        return None
    kept = [fault for number, fault in enumerate(faults) if left[which, number] < min(_BETTER, _ALIKE * least)]
    return Restorer(scales[which], tuple(kept), enlarges)


def _noise() -> list[Fault]:
    def adding(strength: int) -> Fault:
        def spoil(pixels: Tensor, generator: torch.Generator) -> Tensor:
            return pixels + strength / 255 * torch.randn(pixels.shape, generator=generator)

        return Fault(f"noise of sigma {strength}/255", spoil)

    return [adding(strength) for strength in _NOISES]


def _blur() -> list[Fault]:
    def blurring(times: int) -> Fault:
        def spoil(pixels: Tensor, _: torch.Generator) -> Tensor:
            return _resized(_enlarged(pixels, 1 / times), pixels.shape[2:])

        return Fault(f"made {times} times smaller and large again", spoil)

    return [blurring(times) for times in _BLURS]


def _smaller(times: int) -> Fault:
    return Fault(f"made {times} times smaller", lambda pixels, _: _enlarged(pixels, 1 / times))


def _enlarged(pixels: Tensor, times: float) -> Tensor:
    size = [max(1, round(side * times)) for side in pixels.shape[2:]]
    return pixels if times == 1 else _resized(pixels, size)


def _resized(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Bicubic, as images are usually made smaller and larger."""
    return F.interpolate(pixels, size=list(size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
