"""Networks that take their channels last, as TensorFlow writes them: turned, to have images made up for them too."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example

_CHANNELS = (1, 3, 4)


class Upright(nn.Module):
    """A network whose images have their channels first, around one that has them last.

    Args:
        model: the network.
        turned: of every tensor among its inputs, whether it has.
    """

    def __init__(self, model: nn.Module, turned: tuple[bool, ...]) -> None:
        super().__init__()
        self.model, self.turned = model, turned

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the network's own, with images (N, C, H, W)."""
        flags = iter(self.turned)
        return Example(args, kwargs).map(lambda one: _last(one) if next(flags) else one).run(self.model)


def upright(seen: Capture) -> tuple[Capture, tuple[bool, ...]]:
    """A capture of a network with channels first, and of every input whether it was turned for that.

    An image has its channels last where the last axis is 1, 3 or 4 long and the second one longer.
    """
    tensors = seen.example.tensors()
    turned = tuple(one.dim() == 4 and one.shape[3] in _CHANNELS and one.shape[1] > max(_CHANNELS) for one in tensors)
    if not any(turned):
        return seen, turned
    flags = iter(turned)
    example = seen.example.map(lambda one: one.permute(0, 3, 1, 2).contiguous() if next(flags) else one)
    return dataclasses.replace(seen, model=Upright(seen.model, turned), example=example), turned


def as_taken(images: tuple[Tensor, ...], turned: tuple[bool, ...]) -> tuple[Tensor, ...]:
    """Images with their channels where the network has them."""
    return tuple(_last(one) if last else one for one, last in zip(images, turned, strict=True))


def _last(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).contiguous()
