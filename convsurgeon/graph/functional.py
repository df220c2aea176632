"""Convs that are called as functions, not as modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convsurgeon.forms.geometry import Geometry

FUNCTIONS = {
    torch.conv1d: 1,
    torch.conv2d: 2,
    torch.conv3d: 3,
    torch.conv_transpose1d: -1,
    torch.conv_transpose2d: -2,
    torch.conv_transpose3d: -3,
    torch.ops.aten.conv1d.default: 1,
    torch.ops.aten.conv2d.default: 2,
    torch.ops.aten.conv2d.padding: 2,
    torch.ops.aten.conv3d.default: 3,
}
"""Their dimensions, negative where transposed."""


def functional_geometry(dimensions: int, weight: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry:
    """Return the geometry of a call, from its arguments by position or name; `dimensions` < 0 means transposed."""
    late = ("dilation", "groups") if dimensions > 0 else ("output_padding", "groups", "dilation")
    given = dict(zip(("input", "weight", "bias", "stride", "padding", *late), args, strict=False)) | kwargs
    groups, padding = given.get("groups", 1), given.get("padding", 0)
    channels = (weight.shape[0], weight.shape[1] * groups)
    dims = abs(dimensions)
    return Geometry(
        in_channels=channels[dimensions > 0],
        out_channels=channels[dimensions < 0],
        kernel_size=tuple(weight.shape[2:]),
        stride=_tuple(given.get("stride", 1), dims),
        padding=padding if isinstance(padding, str) else _tuple(padding, dims),
        dilation=_tuple(given.get("dilation", 1), dims),
        groups=groups,
        padding_mode="zeros",
        bias=given.get("bias") is not None,
        transposed=dimensions < 0,
    )


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list | torch.Size) else (value,)
    return values * length if len(values) == 1 else values
