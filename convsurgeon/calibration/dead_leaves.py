"""Synthetic images with the statistics of photographs.

Photographs have edges that hide what is behind them, at all scales alike: "dead leaves", opaque shapes whose areas are
spread evenly (Matheron 1968; Lee, Mumford and Huang 2001; as training data Baradad et al. 2021). Each leaf is shaded
and textured by noise whose amplitude falls with the frequency, colours vary most in brightness, some leaves are out of
focus, and every image has its own light, contrast and grain.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAVES = 48
_SMALLEST, _LARGEST = 0.04, 0.5
"""Radii of leaves, in sides of the image."""
_FINE = 96
"""Up to this side images are drawn at twice their size and scaled down, so that small ones have soft edges too."""
_AT_ONCE = 1 << 22
"""Values that are drawn at a time."""


def draw_images(count: int, channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return `count` images (N, C, H, W) in [0, 1], float32 on the CPU; the same for the same generator state."""
    scale = 2 if max(height, width) <= _FINE else 1
    most = max(1, _AT_ONCE // (channels * height * width * scale**2))
    parts = []
    for start in range(0, count, most):
        image = _Scenes(min(most, count - start), channels, height * scale, width * scale, generator).paint()
        image = F.avg_pool2d(image, scale) if scale > 1 else image
        grain = 0.03 * torch.rand(len(image), 1, 1, 1, generator=generator, dtype=torch.float32, device="cpu")
        parts.append(
            (image + grain * torch.randn(image.shape, generator=generator, dtype=torch.float32, device="cpu")).clamp(
                0, 1
            )
        )
    return torch.cat(parts)


def fractal_noise(slopes: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return noise (N, H, W) of mean 0 and variance 1 whose amplitude is the frequency to the power of -slope (N,)."""
    rows, columns = (
        torch.fft.fftfreq(height, dtype=torch.float32, device="cpu")[:, None],
        torch.fft.rfftfreq(width, dtype=torch.float32, device="cpu")[None],
    )
    frequency = (rows.square() + columns.square()).sqrt().mul(max(height, width)).clamp(min=1.0)
    white = torch.fft.rfft2(
        torch.randn(len(slopes), height, width, generator=generator, dtype=torch.float32, device="cpu")
    )
    noise: Tensor = torch.fft.irfft2(white * frequency ** -slopes[:, None, None], s=(height, width))
    noise -= noise.mean((1, 2), keepdim=True)
    noise /= noise.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-6)
    return noise


class _Scenes:
    """A batch of images on which leaves fall, one at a time."""

    def __init__(self, count: int, channels: int, height: int, width: int, generator: torch.Generator) -> None:
        self.count, self.channels, self.generator = count, channels, generator
        self.side = max(height, width)
        self.y = torch.arange(height, dtype=torch.float32, device="cpu").view(1, -1, 1) / self.side
        self.x = torch.arange(width, dtype=torch.float32, device="cpu").view(1, 1, -1) / self.side
        self.light = self.uniform(0.15, 0.75, 1)
        self.contrast, self.colour = self.uniform(0.08, 0.35, 1), self.uniform(0.0, 0.12, 1)
        self.rough = self.uniform(0.0, 0.5).square()
        self.textures = [fractal_noise(self.uniform(0.6, 1.8, 1)[:, 0], height, width, generator) for _ in range(2)]

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return one number (N, 1, 1) for every image, or as many as the shape says."""
        return (
            torch.rand(self.count, *(shape or (1, 1)), generator=self.generator, dtype=torch.float32, device="cpu")
            * (high - low)
            + low
        )

    def normal(self, *shape: int) -> Tensor:
        """Return normal numbers (N, *shape)."""
        return torch.randn(self.count, *shape, generator=self.generator, dtype=torch.float32, device="cpu")

    def paint(self) -> Tensor:
        """Return a background and leaves (N, C, H, W)."""
        image = self._surface(0)
        leaves = self.uniform(2, _LEAVES)
        for index in range(_LEAVES):
            cover = self._leaf() * (index < leaves)
            image = torch.lerp(image, self._surface(index % 2), cover[:, None])
        return image

    def _surface(self, texture: int) -> Tensor:
        """Return a colour, shaded from one side to the other, with texture."""
        bright, hue = self.normal(1) * self.contrast, self.normal(self.channels) * self.colour
        slant = self.normal(2, 1, 1, 1) * 0.25
        shade = slant[:, 0] * (self.y - 0.5)[:, None] + slant[:, 1] * (self.x - 0.5)[:, None]
        colour = (self.light + bright + hue)[:, :, None, None]
        return colour + shade + (self.rough * self.textures[texture])[:, None]

    def _leaf(self) -> Tensor:
        """Return how much of each pixel (N, H, W) a rotated ellipse or box covers, sharp or out of focus."""
        radius = _SMALLEST / self.uniform((_SMALLEST / _LARGEST) ** 2, 1.0).sqrt()
        turn, slim = self.uniform(0, math.pi), self.uniform(0.25, 1.0)
        right, down = self.x - self.uniform(0, float(self.x.max())), self.y - self.uniform(0, float(self.y.max()))
        u = (right * turn.cos() + down * turn.sin()).abs() / radius
        v = (down * turn.cos() - right * turn.sin()).abs() / (radius * slim)
        distance = torch.where(self.uniform(0, 1) < 0.6, (u.square() + v.square()).sqrt(), torch.maximum(u, v))
        blur = 0.7 * self.uniform(0.5, 1.0) ** -3 / self.side
        return ((1 - distance) * radius * slim / blur).clamp(-1, 1) / 2 + 0.5
