"""Networks that restore images, denoisers and super-resolution: which faults they were trained to remove.

A network of one image in and one out is shown images with a fault: noise of some strength, or the blur of a smaller
size. Where its output is nearer to the image without the fault than its input was, it was trained for that fault, and
calibration images get it. The same test finds the normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsurgeon.calibration.normalisation import Normalisation

_REMOVED = 0.9
"""A network removes a fault if at most this share of its squared error is left."""
_ALIKE = 2.0
"""Faults are kept up to this multiple of the least share that is left."""
_NOISES = (5, 10, 15, 25, 35, 50, 75)
_BLURS = (2, 3, 4)

Spoil = Callable[[Tensor, torch.Generator], Tensor]
"""(images in [0, 1], generator) -> images with the fault."""


@dataclass(frozen=True)
class Restorer:
    """The normalisation of a network, and the faults that it removes by name."""

    scale: Normalisation
    faults: dict[str, Spoil]

    def spoil(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Return pixels with one fault each, in turn."""
        count = len(self.faults)
        parts = [spoil(pixels[at::count], generator) for at, spoil in enumerate(self.faults.values())]
        images = torch.empty(len(pixels), *parts[0].shape[1:], dtype=torch.float32, device="cpu")
        for at, part in enumerate(parts):
            images[at::count] = part
        return images


def enlargement(given: Tensor, output: object) -> int:
    """Return how many times larger an image comes out than it went in; 0 where the output is not an image."""
    if not isinstance(output, Tensor) or output.dim() != 4 or output.shape[:2] != given.shape[:2]:
        return 0
    times = output.shape[2] // given.shape[2]
    return times if times in (1, 2, 3, 4, 8) and output.shape[2:] == tuple(s * times for s in given.shape[2:]) else 0


def find_restorer(
    model: nn.Module, pixels: Tensor, enlarges: int, scales: Sequence[Normalisation], like: Tensor, seed: int
) -> Restorer | None:
    """Return what a network restores, None if nothing, by natural images as large as its output."""
    faults = _faults(enlarges)
    left: dict[tuple[int, str], float] = {}
    for name, spoil in faults.items():
        spoilt = spoil(pixels, torch.Generator().manual_seed(seed))
        before = (_resize(spoilt, enlarges) - pixels).square().sum()
        for which, scale in enumerate(scales):
            out = model(scale.apply(spoilt).to(like)).float().cpu()
            left[which, name] = float((scale.undo(out) - pixels).square().sum() / before)
    (which, _), least = min(left.items(), key=lambda pair: pair[1])
    if not least < _REMOVED:
        return None
    kept = {name: spoil for name, spoil in faults.items() if left[which, name] < min(_REMOVED, _ALIKE * least)}
    return Restorer(scales[which], kept)


def _faults(enlarges: int) -> dict[str, Spoil]:
    if enlarges > 1:
        return {f"made {enlarges} times smaller": partial(_shrink, enlarges)}
    noise: dict[str, Spoil] = {f"noise of sigma {sigma}/255": partial(_add_noise, sigma) for sigma in _NOISES}
    return noise | {f"made {times} times smaller and large again": partial(_blur, times) for times in _BLURS}


def _add_noise(sigma: int, pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels + sigma / 255 * torch.randn(pixels.shape, generator=generator, dtype=torch.float32, device="cpu")


def _shrink(times: int, pixels: Tensor, _: torch.Generator) -> Tensor:
    return _resize(pixels, 1 / times)


def _blur(times: int, pixels: Tensor, _: torch.Generator) -> Tensor:
    return _resize_to(_resize(pixels, 1 / times), pixels.shape[2:])


def _resize(pixels: Tensor, times: float) -> Tensor:
    return pixels if times == 1 else _resize_to(pixels, [max(1, round(side * times)) for side in pixels.shape[2:]])


def _resize_to(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize as images usually are, bicubic."""
    return F.interpolate(pixels, size=list(size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
