"""A linear layer as the 1x1 conv that it is, so that it is a site like any other: see `planning.linear`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from convsurgeon.forms.modules import InPlaceOfLayer


class LinearAsConv(InPlaceOfLayer):
    """What `nn.Linear` computes, as `conv` of size 1x1 over the layer's positions.

    Vectors (N, C) are maps of one position; tokens (N, T, C) and maps with channels last (N, H, W, C) have more.

    Args:
        linear: whose weights are copied.
        dims: of what it reads, 2 to 4. It is said here because a trace cannot ask.
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


def _copy(parameter: Tensor, shaped: Any) -> nn.Parameter:
    """Return a copy of a parameter, indexed into another shape."""
    return nn.Parameter(parameter.detach().clone()[shaped], requires_grad=parameter.requires_grad)
