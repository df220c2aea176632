"""In which numbers a network takes its pixels: 0 to 1, 0 to 255, normalised as ImageNet is, or otherwise.

A network says so where it has batch norms: of all scales the one is right under which drawn images come out as the
norms have seen theirs. The first norm also gives a scale of its own, for a first layer is linear: the means that it
expects are a system of equations for the means of the channels, its variances give their spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import CalibrationError
from convsurgeon.calibration.norm_statistics import Gauge, gauged, statistics
from convsurgeon.graph.example import Example

_NEARLY = 1.25
"""A scale of common use is taken where no other is better by more than that,"""

_NEAR = 0.02
"""or where the batch norms are that little apart from what they know."""

_LEAST_SINGULAR = 0.05
_MEAN, _SPREAD = 0.46, 0.27
"""Of drawn images."""


@dataclass(frozen=True)
class Scale:
    """A network's input is `(pixel - mean) / std`, channel by channel, of pixels from 0 to 1; what it is in words."""

    words: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, pixels: Tensor) -> Tensor:
        """Pixels (N, C, H, W) in [0, 1] as the network takes them."""
        return (pixels - self._column(self.mean)) / self._column(self.std)

    def pixels(self, images: Tensor) -> Tensor:
        """What `apply` was given."""
        return images * self._column(self.std) + self._column(self.mean)

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """What black and white are, (1, C, 1, 1)."""
        zero = torch.zeros(1, len(self.mean), 1, 1)
        return self.apply(zero).to(like), self.apply(zero + 1).to(like)

    def unit(self, like: Tensor) -> Tensor:
        """What the whole range of a pixel comes to, (1, C, 1, 1)."""
        return 1 / self._column(self.std).to(like)

    @staticmethod
    def _column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values).view(1, -1, 1, 1)


def stated(mean: Sequence[float], std: Sequence[float], channels: int) -> Scale:
    """The scale that a user names: one value per channel, or one for all, or none.

    Raises:
        CalibrationError: another number of values, or one that is not finite, or a spread that is not positive.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (0, 1, channels):
            raise CalibrationError(f"{name}: {len(values)} values for {channels} channels; pass one or {channels}")
        if not all(map(math.isfinite, values)):
            raise CalibrationError(f"{name}: holds NaN or infinity; pass the numbers that the network was trained with")
    if not all(value > 0 for value in std):
        raise CalibrationError(f"std: every value must be above 0, got {list(std)}")
    full = [tuple(values) * (channels if len(values) == 1 else 1) for values in (mean or (0.0,), std or (1.0,))]
    return Scale(f"(pixel - {_listed(full[0])}) / {_listed(full[1])}", *full)


def common(channels: int) -> list[Scale]:
    """Scales of common use."""
    found = [
        Scale("the scale 0 to 1", (0.0,) * channels, (1.0,) * channels),
        Scale("the scale -1 to 1", (0.5,) * channels, (0.5,) * channels),
        Scale("the scale 0 to 255", (0.0,) * channels, (1 / 255,) * channels),
    ]
    if channels == 3:
        found.append(Scale("ImageNet's normalisation", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        bgr = (103.939 / 255, 116.779 / 255, 123.68 / 255)
        found.append(Scale("BGR from 0 to 255 less ImageNet's mean", bgr, (1 / 255,) * 3))
    return found


def from_norms(model: nn.Module, norms: list[nn.Module], pixels: Tensor, like: Example, place: int) -> Scale:
    """The scale under which drawn pixels (N, C, H, W) come nearest to what the batch norms know.

    Args:
        model: in eval mode.
        norms: those of it that know something.
        pixels: drawn, in [0, 1].
        like: the example.
        place: of the input among the example's tensors.
    """
    with gauged(norms) as gauge:

        def apart(scale: Scale) -> float:
            return _divergence(model, gauge, scale.apply(pixels), like, place)

        best, scale = min(((apart(one), one) for one in common(pixels.shape[1])), key=lambda pair: pair[0])
        own = _by_first_norm(model, norms[0], gauge, pixels, like, place)
        if own is not None and best > _NEAR and _NEARLY * apart(own) < best:
            return own
    return scale


def from_example(example: Tensor) -> Scale:
    """What the example's own values hint at, where the network says nothing."""
    channels = example.shape[1]
    low, high = float(example.min()), float(example.max())
    scales = common(channels)
    if low < 0 or (low == high and channels == 3):
        words = "mean 0 and standard deviation 1"
        return Scale(words, (_MEAN,) * channels, (_SPREAD,) * channels)
    return scales[2] if high > 2 else scales[0]


def _divergence(model: nn.Module, gauge: Gauge, images: Tensor, like: Example, place: int) -> float:
    gauge.reset()
    _with(like, place, images).run(model)
    return float(gauge.mean())


def _by_first_norm(
    model: nn.Module, norm: nn.Module, gauge: Gauge, pixels: Tensor, like: Example, place: int
) -> Scale | None:
    """Mean and spread of every channel as the first norm has them; None where it has no say."""
    channels = pixels.shape[1]
    middle = pixels.mean((0, 2, 3), keepdim=True)
    spread = pixels.std((0, 2, 3), keepdim=True)
    plain = torch.zeros(1 + channels, *pixels.shape[1:])
    for channel in range(channels):
        plain[1 + channel, channel] = 1.0
    gauge.first.clear()
    for image in (*plain.split(1), (pixels - middle) / spread):
        gauge.reset()
        _with(like, place, image).run(model)
    seen = [(mean.double().cpu(), variance.double().cpu()) for mean, variance in gauge.first]
    if len(seen) != channels + 2:  # called more than once
        return None
    known, variance = (value.double().cpu() for value in statistics(norm))
    nothing = seen[0][0]
    response = torch.stack([mean - nothing for mean, _ in seen[1:-1]], dim=1)
    means = torch.linalg.pinv(response, rtol=_LEAST_SINGULAR) @ (known - nothing)
    factor = (variance / seen[-1][1].clamp(min=1e-12)).median().clamp(min=1e-12).sqrt()
    std = spread.flatten().double() / factor
    mean = middle.flatten().double() - means * std
    if not bool(torch.cat([std, mean]).isfinite().all()):
        return None
    return Scale("the mean and spread that the first batch norm expects", tuple(mean.tolist()), tuple(std.tolist()))


def _with(like: Example, place: int, images: Tensor) -> Example:
    """The example with other images in one place; its other inputs are repeated or cut to as many."""
    count, numbered = len(images), iter(range(len(like.tensors())))

    def put(tensor: Tensor) -> Tensor:
        if next(numbered) == place:
            return images.to(tensor)
        repeats = -(-count // max(1, tensor.shape[0]))
        return tensor.repeat(repeats, *[1] * (tensor.dim() - 1))[:count]

    return like.map(put)


def _listed(values: Sequence[float]) -> str:
    short = [f"{value:g}" for value in values]
    return short[0] if len(set(short)) == 1 else f"({', '.join(short)})"
