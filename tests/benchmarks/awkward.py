"""Twelve awkward shapes: networks with random weights that a conversion may easily make slower."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv(
    inputs: int, outputs: int, kernel: int | tuple[int, int] = 3, dilation: int = 1, groups: int = 1
) -> nn.Module:
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = tuple(dilation * (one // 2) for one in size)
    made = nn.Conv2d(inputs, outputs, size, padding=padding, dilation=dilation, groups=groups)
    return nn.Sequential(made, nn.ReLU())


class UNet(nn.Module):
    """Four levels of two convs, concatenated on the way up."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32, 64), inputs: int = 3, outputs: int = 2) -> None:
        super().__init__()
        before = (inputs, *widths)
        self.down = nn.ModuleList(nn.Sequential(_conv(a, b), _conv(b, b)) for a, b in zip(before, widths, strict=False))
        pairs = zip(widths[::-1], widths[-2::-1], strict=False)
        self.up = nn.ModuleList(nn.Sequential(_conv(a + b, b), _conv(b, b)) for a, b in pairs)
        self.head = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for index, level in enumerate(self.down):
            x = level(F.max_pool2d(x, 2) if index else x)
            kept.append(x)
        for level, side in zip(self.up, kept[-2::-1], strict=True):
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0), side], 1))
        return self.head(x)


class Pyramid(nn.Module):
    """Dilated branches of one input, concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = _conv(3, width)
        self.branches = nn.ModuleList(_conv(width, width, dilation=rate) for rate in (1, 6, 12, 18))
        self.head = nn.Conv2d(4 * width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([branch(x) for branch in self.branches], 1))


class Distilled(nn.Module):
    """Super-resolution of 50 channels: each block splits 12 off and goes on with 38."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 50, 3, padding=1)
        self.first = nn.ModuleList(_conv(50, 50) for _ in range(blocks))
        self.second = nn.ModuleList(_conv(38, 50) for _ in range(blocks))
        self.joined = nn.ModuleList(nn.Conv2d(62, 50, 1) for _ in range(blocks))
        self.head = nn.Sequential(nn.Conv2d(50, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second, joined in zip(self.first, self.second, self.joined, strict=True):
            kept, rest = first(x).split([12, 38], 1)
            x = x + joined(torch.cat([kept, second(rest)], 1))
        return self.head(x)


class Twice(nn.Module):
    """Two U-Nets in a row, the second one refining the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = UNet((8, 16, 32), 3, 3), UNet((8, 16, 32), 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.first(x))


def _plain(widths: tuple[int, ...], kernel: int | tuple[int, int] = 3, groups: int = 1) -> nn.Module:
    convs = [
        _conv(a, b, kernel, groups=groups if a % groups == 0 else 1) for a, b in zip((3, *widths), widths, strict=False)
    ]
    return nn.Sequential(*convs, nn.Conv2d(widths[-1], 3, 1))


def _separable(width: int, count: int) -> nn.Module:
    blocks = [nn.Sequential(_conv(width, width, groups=width), _conv(width, width, 1)) for _ in range(count)]
    return nn.Sequential(_conv(3, width), *blocks, nn.Conv2d(width, 3, 1))


def _classifier(width: int, size: int) -> nn.Module:
    body = [_conv(3, width), nn.MaxPool2d(2), _conv(width, 2 * width), nn.MaxPool2d(2), _conv(2 * width, 2 * width)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(2 * width * (size // 4) ** 2, 10))


AWKWARD: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "unet 8-64": (UNet, (128, 128)),
    "unets in a row": (Twice, (96, 96)),
    "dilated pyramid 32": (lambda: Pyramid(32), (64, 64)),
    "dilated pyramid 64": (lambda: Pyramid(64), (64, 64)),
    "split super-resolution 50": (lambda: Distilled(4), (64, 64)),
    "1x7": (lambda: _plain((32, 32, 32, 32), (1, 7)), (64, 64)),
    "13x1": (lambda: _plain((24, 24, 24), (13, 1)), (64, 64)),
    "depthwise-heavy": (lambda: _separable(64, 5), (64, 64)),
    "grouped 4": (lambda: _plain((64, 64, 64), groups=4), (32, 32)),
    "narrow 6": (lambda: _plain((6, 6, 6, 6)), (64, 64)),
    "classifier 32x32": (lambda: _classifier(32, 32), (32, 32)),
    "wide image 1024x1024": (lambda: _plain((16, 16, 16)), (1024, 1024)),
}
"""How each is made, and the size of its images."""
