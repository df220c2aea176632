"""Layers as the 2-d convs that they are, and so sites like any other: see `planning.linear` and `planning.rows`."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.modules import InPlaceOfLayer


class LinearAsConv(InPlaceOfLayer):
    """What `nn.Linear` computes, as `conv` of size 1x1 over the layer's positions, with a copy of its weights.

    Vectors (N, C) are maps of one position; tokens (N, T, C) and maps with channels last (N, H, W, C) have more.
    `dims`, of what it reads, is said here because a trace cannot ask.
    """

    DIMS = (2, 3, 4)
    instead = "linear_as_conv made a conv of the layer; leave out layers whose weight other code reads"

    def __init__(self, linear: nn.Linear, dims: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dims = linear.in_features, linear.out_features, dims
        bias = linear.bias is not None
        self.conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=bias, device="meta")
        self.conv.weight = _copy(linear.weight, (..., None, None))
        if bias:
            self.conv.bias = _copy(linear.bias, ...)
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name nn.Linear gives it, for callers by keyword
        """Map (N, ..., C) to (N, ..., O)."""
        if self.dims == 2:
            found: Tensor = self.conv(input[:, :, None, None]).flatten(1)
            return found
        if self.dims == 3:
            return self.conv(input.transpose(1, 2)[:, :, :, None]).squeeze(3).transpose(1, 2)  # type: ignore[no-any-return]
        return self.conv(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class Conv1dAsConv(InPlaceOfLayer):
    """What `nn.Conv1d` computes, as `conv` with a window of one row over a map of one row, with a copy of its weights.

    onnxruntime has its fast layouts for 2-d convs only, so this is faster by itself.
    """

    instead = "a conv of one row took the place of the Conv1d, and `.conv` has its weights"

    def __init__(self, layer: nn.Conv1d) -> None:
        super().__init__()
        flat = Geometry.of(layer)
        window: dict[str, Any] = {name: (1, *getattr(flat, name)) for name in ("kernel_size", "stride", "dilation")}
        padding = flat.padding if isinstance(flat.padding, str) else (0, *flat.padding)
        self.conv = dataclasses.replace(flat, padding=padding, **window).module(device="meta")
        self.conv.weight = _copy(layer.weight, (..., None, slice(None)))
        if layer.bias is not None:
            self.conv.bias = _copy(layer.bias, ...)
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name nn.Conv1d gives it, for callers by keyword
        """Map (N, C, L) to (N, O, L'), or (C, L) to (O, L')."""
        found: Tensor = self.conv(input.unsqueeze(-2)).squeeze(-2)
        return found


def _copy(parameter: Tensor, shaped: Any) -> nn.Parameter:
    """Return a copy of a parameter, indexed into another shape."""
    return nn.Parameter(parameter.detach().clone()[shaped], requires_grad=parameter.requires_grad)
