"""The numbers in which a network takes its pixels: 0 to 1, 0 to 255, ImageNet's normalisation, or others.

A network with batch norms tells them: natural images in the right numbers have the statistics that the norms hold. The
first conv is linear, so the means that its norm holds also give a linear system for the means of the channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import CalibrationError
from convsurgeon.calibration.norm_statistics import NormWatch, held_statistics, watch_norms
from convsurgeon.graph.example import Example

Numbers = float | Sequence[float]

_BETTER = 1.25
"""A common normalisation is taken unless another has a divergence this many times smaller,"""
_NEAR = 0.02
"""or if its own divergence is below this."""
_LEAST_SINGULAR = 0.05
_MEAN, _STD = 0.46, 0.27
"""Of synthetic images."""


@dataclass(frozen=True)
class Normalisation:
    """The input of a network is `(pixel - mean) / std`, for each channel of pixels in [0, 1]."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, pixels: Tensor) -> Tensor:
        """Return pixels (N, C, H, W) as the network takes them."""
        return (pixels - _column(self.mean)) / _column(self.std)

    def undo(self, images: Tensor) -> Tensor:
        """Return the pixels that `apply` was given."""
        return images * _column(self.std) + _column(self.mean)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def normalisation(mean: Numbers | None, std: Numbers | None, channels: int) -> Normalisation:
    """Return the normalisation that a user states: one number for each channel, or one for all, or none.

    Raises:
        CalibrationError: Another count of numbers, or one that is not finite, or a spread that is not positive.
    """
    full = []
    for name, given in (("mean", 0.0 if mean is None else mean), ("std", 1.0 if std is None else std)):
        values = (given,) * channels if isinstance(given, int | float) else tuple(given)
        values = values * channels if len(values) == 1 else values
        if len(values) != channels:
            raise CalibrationError(f"{name}: {len(values)} values for {channels} channels; pass one or {channels}")
        if not all(map(math.isfinite, values)):
            raise CalibrationError(f"{name}: holds NaN or infinity; pass the numbers that the network was trained with")
        full.append(values)
    if min(full[1]) <= 0:
        raise CalibrationError(f"std: every value must be above 0, got {list(full[1])}")
    return Normalisation(f"(pixel - {_in_words(full[0])}) / {_in_words(full[1])}", *full)


def _in_words(values: Sequence[float]) -> str:
    short = [f"{value:g}" for value in values]
    return short[0] if len(set(short)) == 1 else f"({', '.join(short)})"


def common_normalisations(channels: int) -> list[Normalisation]:
    """Return the normalisations in common use."""
    found = [
        Normalisation("the range 0 to 1", (0.0,) * channels, (1.0,) * channels),
        Normalisation("the range -1 to 1", (0.5,) * channels, (0.5,) * channels),
        Normalisation("the range 0 to 255", (0.0,) * channels, (1 / 255,) * channels),
    ]
    if channels == 3:
        bgr = (103.939 / 255, 116.779 / 255, 123.68 / 255)
        found.append(Normalisation("ImageNet's normalisation", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        found.append(Normalisation("BGR from 0 to 255 less ImageNet's mean", bgr, (1 / 255,) * 3))
    return found


def guess_from_example(example: Tensor) -> Normalisation:
    """Return the normalisation that the example's values hint at, for a network that says nothing."""
    channels = example.shape[1]
    low, high = float(example.min()), float(example.max())
    if low < 0 or (low == high and channels == 3):
        return Normalisation("mean 0 and standard deviation 1", (_MEAN,) * channels, (_STD,) * channels)
    return common_normalisations(channels)[2 if high > 2 else 0]


def find_by_norms(model: nn.Module, norms: list[nn.Module], pixels: Tensor, like: Example, place: int) -> Normalisation:
    """Return the normalisation under which pixels have nearly the statistics that the batch norms hold.

    Args:
        model: In eval mode.
        norms: Those of its batch norms that were trained.
        pixels: Natural images (N, C, H, W) in [0, 1].
        like: The example.
        place: Of the input among the example's tensors.
    """
    with watch_norms(norms) as watch:

        def divergence(one: Normalisation) -> float:
            return float(watch.run(model, _replaced(like, place, one.apply(pixels))))

        divergences = [(divergence(one), one) for one in common_normalisations(pixels.shape[1])]
        least, best = min(divergences, key=lambda pair: pair[0])
        own = _solve_first_norm(model, norms[0], watch, pixels, like, place)
        if own is not None and least > _NEAR and _BETTER * divergence(own) < least:
            return own
    return best


def _solve_first_norm(
    model: nn.Module, norm: nn.Module, watch: NormWatch, pixels: Tensor, like: Example, place: int
) -> Normalisation | None:
    """Return the channels' mean and spread that the first norm implies; None where it runs more than once."""
    channels = pixels.shape[1]
    middle = pixels.mean((0, 2, 3), keepdim=True)
    spread = pixels.std((0, 2, 3), keepdim=True)
    black_and_channels = torch.zeros(1 + channels, *pixels.shape[1:])
    for channel in range(channels):
        black_and_channels[1 + channel, channel] = 1.0
    watch.first.clear()
    for image in (*black_and_channels.split(1), (pixels - middle) / spread):
        watch.run(model, _replaced(like, place, image))
    seen = [(mean.double().cpu(), variance.double().cpu()) for mean, variance in watch.first]
    if len(seen) != channels + 2:
        return None
    held_mean, held_variance = (value.double().cpu() for value in held_statistics(norm))
    black = seen[0][0]
    response = torch.stack([mean - black for mean, _ in seen[1:-1]], dim=1)
    means = torch.linalg.pinv(response, rtol=_LEAST_SINGULAR) @ (held_mean - black)
    factor = (held_variance / seen[-1][1].clamp(min=1e-12)).median().clamp(min=1e-12).sqrt()
    std = spread.flatten().double() / factor
    mean = middle.flatten().double() - means * std
    if not bool(torch.cat([std, mean]).isfinite().all()):
        return None
    name = "the mean and spread that the first batch norm expects"
    return Normalisation(name, tuple(mean.tolist()), tuple(std.tolist()))


def _replaced(like: Example, place: int, images: Tensor) -> Example:
    """Return the example with other images in one place, its other inputs repeated or cut to as many."""
    count, numbers = len(images), iter(range(len(like.tensors())))

    def replace(tensor: Tensor) -> Tensor:
        if next(numbers) == place:
            return images.to(tensor)
        repeats = -(-count // max(1, tensor.shape[0]))
        return tensor.repeat(repeats, *[1] * (tensor.dim() - 1))[:count]

    return like.map(replace)
