"""Networks that take their channels last, as TensorFlow writes them."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example


def is_channels_last(tensor: Tensor) -> bool:
    """Return whether an input is (N, H, W, C): its last axis is 1, 3 or 4 long and the second one longer."""
    return tensor.dim() == 4 and tensor.shape[3] in (1, 3, 4) and tensor.shape[1] > 4


def to_channels_last(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) as (N, H, W, C)."""
    return images.permute(0, 2, 3, 1).contiguous()


def to_channels_first(images: Tensor) -> Tensor:
    """Return images (N, H, W, C) as (N, C, H, W)."""
    return images.permute(0, 3, 1, 2).contiguous()


class _ChannelsFirst(nn.Module):
    """A network with channels last, called with channels first."""

    def __init__(self, model: nn.Module, last: list[bool]) -> None:
        super().__init__()
        self.model, self.last = model, last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = Example(args, kwargs)
        images = [to_channels_last(one) if last else one for one, last in zip(given.tensors(), self.last, strict=True)]
        return given.with_tensors(images).run(self.model)


def with_channels_first(seen: Capture) -> tuple[Capture, list[bool]]:
    """Return the capture of a network with channels first, and which of its inputs had them last."""
    tensors = seen.example.tensors()
    last = [is_channels_last(one) for one in tensors]
    if not any(last):
        return seen, last
    images = [to_channels_first(one) if flag else one for one, flag in zip(tensors, last, strict=True)]
    example = seen.example.with_tensors(images)
    return dataclasses.replace(seen, model=_ChannelsFirst(seen.model, last), example=example), last
