"""Layers as the 2-d convs that they are, and so sites: see `planning.linear` and `planning.layers_as_convs`."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.forms.geometry import Geometry, keeps_channels_last
from convsurgeon.forms.modules import InPlaceOfLayer

_END = 2**31 - 1
"""End of a slice that goes on to the end."""


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


class CutConvTranspose2d(nn.ConvTranspose2d):
    """A transposed conv of an ONNX file that leaves out more at the end of an axis than at its beginning.

    `output_padding` may be below zero, which torch does not take: rows or columns of the end that are left out.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        """Map (N, C, H, W) to (N, O, H', W')."""
        more = [max(0, one) for one in self.output_padding]
        wide = nn.functional.conv_transpose2d(
            input, self.weight, self.bias, self.stride, _pair(self.padding), more, self.groups, self.dilation
        )
        rows, columns = (min(0, one) or _END for one in self.output_padding)
        return wide[..., :rows, :columns]


class TransposedAsConv(InPlaceOfLayer):
    """What `nn.ConvTranspose2d` of stride s computes, as `conv` with s * s outputs for each of its own, and a shuffle.

    Output n reads input i through tap n + padding - s * i, so outputs of one remainder by s are a dense conv of every
    s-th tap, in reverse. `bounds` cut away the rows and columns of the shuffled map that the layer does not have.
    """

    instead = "a conv and a pixel shuffle took the place of the ConvTranspose2d, and `.conv` has its weights"

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        super().__init__()
        names = ("kernel_size", "padding", "output_padding")
        self.geometry: dict[str, Any] = {name: _pair(getattr(layer, name)) for name in names}
        self.factor, self.out_channels = int(layer.stride[0]), layer.out_channels
        rows, columns = _ends_of(layer)
        (top, bottom), (left, right) = rows.spare, columns.spare
        self.has_spare = any((top, bottom, left, right))
        self.bounds = (top, -bottom or _END, left, -right or _END)
        self.conv = nn.Conv2d(
            layer.in_channels, layer.out_channels * self.factor**2, (rows.taps, columns.taps),
            padding=(rows.padding, columns.padding), groups=layer.groups, bias=layer.bias is not None, device="meta",
        )  # fmt: skip
        flags = layer.weight.requires_grad
        phases = self._phases(layer.weight.detach(), layer.groups).contiguous(memory_format=_layout(layer.weight))
        self.conv.weight = nn.Parameter(phases, requires_grad=flags)
        if layer.bias is not None:
            bias = layer.bias.detach().repeat_interleave(self.factor**2)
            self.conv.bias = nn.Parameter(bias, requires_grad=layer.bias.requires_grad)
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name nn.ConvTranspose2d gives it
        """Map (N, C, H, W) to (N, O, H', W')."""
        wide: Tensor = nn.functional.pixel_shuffle(self.conv(input), self.factor)
        top, bottom, left, right = self.bounds  # written so that torch.jit.script takes it, too
        return wide[..., top:bottom, left:right] if self.has_spare else wide

    def as_it_was(self) -> nn.ConvTranspose2d:
        """Return the transposed conv of the weights of `conv`, which is still dense."""
        conv, factor = self.conv, self.factor
        kind = CutConvTranspose2d if min(self.geometry["output_padding"]) < 0 else nn.ConvTranspose2d
        made = kind(
            conv.in_channels, conv.out_channels // factor**2, stride=factor, groups=conv.groups,
            bias=conv.bias is not None, device="meta", **self.geometry,
        )  # fmt: skip
        parts = conv.weight.detach().unflatten(0, (conv.groups, -1, factor, factor)).flip(5, 6)
        dense = parts.permute(0, 4, 1, 5, 2, 6, 3).flatten(5, 6).flatten(3, 4).flatten(0, 1)
        rows, columns = self.geometry["kernel_size"]
        weight = dense[:, :, :rows, :columns].contiguous(memory_format=_layout(conv.weight))
        made.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
        if conv.bias is not None:
            made.bias = nn.Parameter(conv.bias.detach()[:: factor**2].clone(), requires_grad=conv.bias.requires_grad)
        return made.train(self.training)

    def _phases(self, weight: Tensor, groups: int) -> Tensor:
        """Return the kernel (O s s, C / groups, taps, taps) of a transposed conv's (C, O / groups, k, k)."""
        factor, (rows, columns) = self.factor, self.conv.kernel_size
        height, width = weight.shape[2:]
        wide = nn.functional.pad(weight, (0, factor * columns - width, 0, factor * rows - height))
        parts: Tensor = wide.reshape(groups, -1, weight.shape[1], rows, factor, columns, factor)
        return parts.permute(0, 2, 4, 6, 1, 3, 5).flip(5, 6).flatten(0, 3)


@dataclasses.dataclass(frozen=True)
class _Ends:
    """Along one axis: taps of the conv, its padding at both ends, and what is spare at the ends of the shuffled map."""

    taps: int
    padding: int
    spare: tuple[int, int]


def _ends(kernel: int, padding: int, more: int, factor: int) -> _Ends:
    """Return how a conv covers a transposed one along an axis; a padding below zero where none does."""
    taps = -(-kernel // factor)
    before = taps - 1 - padding // factor  # so that the map begins with the first output
    after = (kernel + more - padding - 1) // factor
    amount = max(before, after) if before >= 0 else before
    start = padding - factor * (padding // factor - (amount - before))
    return _Ends(taps, amount, (start, factor * (2 * amount - taps + 2) + 2 * padding - kernel - more - start))


def transposed_obstacle(layer: nn.ConvTranspose2d) -> str:
    """Return why a transposed conv is not a conv and a shuffle; empty where it is."""
    if layer.dilation != (1, 1) or layer.stride[0] != layer.stride[1] or layer.stride[0] < 2:
        return "only those of one stride of 2 or more, without dilation, are rewritten"
    fits = all(end.padding >= 0 and min(end.spare) >= 0 for end in _ends_of(layer))
    return "" if fits else "its padding leaves out whole taps"


def _ends_of(layer: nn.ConvTranspose2d) -> tuple[_Ends, _Ends]:
    sizes = zip(layer.kernel_size, _pair(layer.padding), _pair(layer.output_padding), strict=True)
    rows, columns = (_ends(kernel, padding, more, layer.stride[0]) for kernel, padding, more in sizes)
    return rows, columns


def _layout(weight: Tensor) -> torch.memory_format:
    return torch.channels_last if keeps_channels_last(weight) else torch.contiguous_format


def _pair(values: Any) -> tuple[int, int]:
    return values if isinstance(values, tuple) else (values, values)


def _copy(parameter: Tensor, shaped: Any) -> nn.Parameter:
    """Return a copy of a parameter, indexed into another shape."""
    return nn.Parameter(parameter.detach().clone()[shaped], requires_grad=parameter.requires_grad)
