"""What a convolution is, as a frozen value: channels, window, bias, and the sizes and costs that follow from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_Conv = nn.modules.conv._ConvNd
WINDOW = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
"""The attributes of a conv beside its channels and its bias, under torch's names."""


@dataclass(frozen=True)
class Geometry:
    """The shape of one convolution, of one, two or three dimensions.

    `padding` is a tuple of ints or one of torch's words `"same"` and `"valid"`.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    bias: bool
    transposed: bool = False

    def __post_init__(self) -> None:
        windows = [self.kernel_size, self.stride, self.dilation]
        if isinstance(self.padding, str):
            wrong = self.padding not in ("same", "valid")
        else:
            wrong = len(self.padding) != len(self.kernel_size)
        if wrong or {len(values) for values in windows} not in ({1}, {2}, {3}) or min(map(min, windows)) < 1:
            raise ValueError("kernel_size, stride, padding and dilation do not fit together")
        channels = self.in_channels, self.out_channels
        if min(*channels, self.groups) < 1 or any(number % self.groups for number in channels):
            raise ValueError("in_channels, out_channels and groups do not fit together")

    @staticmethod
    def of(conv: _Conv) -> Geometry:
        """Read the geometry off a module."""
        padding = conv.padding if isinstance(conv.padding, str) else _wide(conv, conv.padding)
        return Geometry(
            conv.in_channels,
            conv.out_channels,
            _wide(conv, conv.kernel_size),
            _wide(conv, conv.stride),
            padding,
            _wide(conv, conv.dilation),
            conv.groups,
            conv.padding_mode,
            conv.bias is not None,
            conv.transposed,
        )

    @property
    def taps(self) -> int:
        """Number of positions in the window, kh * kw."""
        return math.prod(self.kernel_size)

    @property
    def in_per_group(self) -> int:
        """Input channels that one output channel sees."""
        return self.in_channels // self.groups

    @property
    def out_per_group(self) -> int:
        """Output channels that one input channel feeds."""
        return self.out_channels // self.groups

    @property
    def depthwise(self) -> bool:
        """One input channel per group."""
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def weights(self) -> int:
        """Elements of the kernel, bias not counted."""
        return self.out_channels * self.in_per_group * self.taps

    @property
    def params(self) -> int:
        """Elements of the kernel and the bias."""
        return self.weights + (self.out_channels if self.bias else 0)

    def over(self, channels: int, *, bias: bool) -> Geometry:
        """Return the depthwise conv with the same window on other channels."""
        return dataclasses.replace(self, in_channels=channels, out_channels=channels, groups=channels, bias=bias)

    def pointwise(self, inputs: int, outputs: int, *, bias: bool) -> Geometry:
        """Return a 1x1 conv in as many groups as this one."""
        one = (1, 1)
        return Geometry(inputs, outputs, one, one, (0, 0), one, self.groups, "zeros", bias)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial size of the output for a spatial input `size`; not for transposed convolutions."""
        if self.padding == "same":
            return tuple(size)
        padding = (0,) * len(self.kernel_size) if isinstance(self.padding, str) else self.padding
        windows = zip(size, self.kernel_size, self.stride, padding, self.dilation, strict=True)
        return tuple(
            (length + 2 * pad - dilation * (k - 1) - 1) // step + 1 for length, k, step, pad, dilation in windows
        )

    def macs(self, size: Sequence[int]) -> int:
        """Return the multiply-accumulates of one image of spatial `size`; the bias is not counted."""
        return self.weights * math.prod(self.output_size(size))

    @property
    def kernel(self) -> str:
        """The window as text: `3x3`."""
        return "x".join(map(str, self.kernel_size))

    def __str__(self) -> str:
        words = [f"{self.in_channels}->{self.out_channels}", self.kernel]
        for sign, values in (("/", self.stride), ("d", self.dilation)):
            if set(values) != {1}:
                words.append(sign + ("x".join(map(str, values)) if len(set(values)) > 1 else str(values[0])))
        return " ".join([*words, f"g{self.groups}"] if self.groups > 1 else words)

    def module(self, **factory: Any) -> nn.Conv2d:
        """Return a new `nn.Conv2d` of this geometry; `factory` is device and dtype."""
        arguments: dict[str, Any] = {name: getattr(self, name) for name in WINDOW} | factory
        return nn.Conv2d(self.in_channels, self.out_channels, bias=self.bias, **arguments)


def _wide(conv: _Conv, value: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return an attribute for every dimension, also where somebody set it to one int, as torch allows."""
    return tuple(value) if isinstance(value, tuple | list) else (value,) * (conv.weight.dim() - 2)


def keeps_channels_last(weight: torch.Tensor) -> bool:
    """Return whether a kernel is stored channels-last and not, as 1x1 kernels are, in both layouts at once."""
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
