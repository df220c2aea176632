"""Samples of what a conv reads and should return: patches at random output positions, and their second moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsurgeon.forms.leastsquares import precision

POSITIONS = 4
ROWS_PER_UNKNOWN = 64
"""Output positions drawn per image: so many at least, and as many as give each unknown of an output so many rows."""

LEAST_PER_UNKNOWN = 14
_MACS = 20_000_000_000
"""Multiply-accumulates of a layer's covariance, above which fewer rows are drawn, down to the least."""

Positions = tuple[Tensor, Tensor, Tensor]
"""Image, row and column of places in a batch's output."""

_BLOCK_ROWS = 4096
_BLOCK_COLUMNS = 384
_BYTES = 1 << 29
"""Patches held at a time, 512 MB; fewer positions are drawn where a layer's patches would not fit."""


@dataclass(frozen=True)
class Samples:
    """Patches (S, groups, C/groups * K) and targets (S, O) in float32, the rows of all calls of a site."""

    patches: Tensor
    targets: Tensor


def positions(shape: Sequence[int], count: int, generator: torch.Generator) -> Positions:
    """Draw `count` positions of every image of an (N, O, H, W) output, without repeats: image, row, column."""
    images, height, width = shape[0], shape[-2], shape[-1]
    count = min(count, height * width)
    drawn = (
        torch.rand(images, height * width, generator=generator, dtype=torch.float32, device="cpu")
        .topk(count, dim=1)
        .indices.flatten()
    )
    return torch.arange(images, device="cpu").repeat_interleave(count), drawn // width, drawn % width


def positions_per_image(images: int, patch_size: int, effort: float = 1.0) -> int:
    """Return how many positions to draw, with no more patches in all than fit into memory.

    A rough fit, of less effort, takes fewer where the covariance is what costs.
    """
    wanted = max(POSITIONS, ROWS_PER_UNKNOWN * patch_size // max(1, images))
    worth = effort * max(_MACS // patch_size**2, LEAST_PER_UNKNOWN * patch_size)
    most = min(_BYTES // (4 * patch_size), int(worth))
    return max(1, min(wanted, most // max(1, images)))


def patches(x: Tensor, conv: nn.Conv2d, where: Positions) -> Tensor:
    """Return the inputs (S, groups, C/groups * kh*kw) at output positions of a conv, padded as the conv pads."""
    image, row, column = (index.to(x.device) for index in where)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode).permute(0, 2, 3, 1)
    height, width = conv.kernel_size
    out = torch.empty(len(image), x.shape[1], height * width, device=x.device, dtype=torch.float32)
    for tap in range(height * width):
        rows = row * conv.stride[0] + tap // width * conv.dilation[0]
        columns = column * conv.stride[1] + tap % width * conv.dilation[1]
        out[:, :, tap] = padded[image, rows, columns]
    return out.reshape(len(image), conv.groups, -1)


def at(y: Tensor, where: Positions) -> Tensor:
    """Return the values (S, O) of an (N, O, H, W) tensor at positions."""
    return y.permute(0, 2, 3, 1)[tuple(index.to(y.device) for index in where)].float()


def mean(values: Tensor) -> Tensor:
    """Return the mean over rows: float32 sums of blocks, added in float64."""
    return cross_moment(values.new_ones(len(values), 1), values, values.new_zeros(values.shape[1]))[0]


def cross_moment(left: Tensor, right: Tensor, center: Tensor) -> Tensor:
    """Return the mean of `left^T (right - center)` over rows: float32 products of blocks, added in float64.

    Rows are centred block by block, so no second copy of them is made.
    """
    total = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64, device=left.device)
    for one, two in zip(left.split(_BLOCK_ROWS), right.split(_BLOCK_ROWS), strict=True):
        total += one.T @ (two - center)
    return total.div_(max(1, len(left)))


def squares(values: Tensor, center: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
    """Return the sum over rows of `v^T v`, with `v` the values around a center.

    One triangle of blocks is multiplied, for little more than half the price. Very wide sums are in float32, in which
    they are solved.

    Args:
        values: (S, p).
        center: (p,), or None to subtract nothing.
        onto: (p, p), symmetric: what the sum is added to, in place.
    """
    width = values.shape[1]
    total = torch.zeros(width, width, dtype=precision(width), device=values.device) if onto is None else onto
    spans = [(start, min(start + _BLOCK_COLUMNS, width)) for start in range(0, width, _BLOCK_COLUMNS)]
    for block in values.split(_BLOCK_ROWS):
        rows = block if center is None else block - center
        for start, end in spans:
            total[start:end, start:] += rows[:, start:end].T @ rows[:, start:]
    for start, end in spans:
        total[end:, start:end] = total[start:end, end:].T
    return total
