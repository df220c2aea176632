"""The example a model is run on: what `model(...)` is called with.

A tensor is the one positional argument, a tuple or list the positional arguments, a mapping the keyword arguments.
A model whose single argument is itself a tuple or dict takes a tuple around it: `example=({"image": x},)`.
`Example(args, kwargs)` mixes both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from convsurgeon.base.errors import CaptureError


@dataclass(frozen=True)
class Example:
    """Positional and keyword arguments of one forward call."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(value: object) -> Example:
        """Read what a user passes as `example`.

        Raises:
            CaptureError: it holds no tensor at all.
        """
        if isinstance(value, Example):
            example = value
        elif isinstance(value, Mapping):
            example = Example((), {str(key): item for key, item in value.items()})
        elif isinstance(value, tuple | list):
            example = Example(tuple(value))
        else:
            example = Example((value,))
        if not example.tensors():
            kind = type(value).__name__
            raise CaptureError(f"example: a {kind} without any tensor; pass a tensor, a tuple of arguments or a dict")
        return example.map(lambda tensor: tensor.clone() if tensor.is_inference() else tensor)

    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in pytree order."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, torch.Tensor)]

    def map(self, function: Callable[[torch.Tensor], Any]) -> Example:
        """Return the same nest with `function` applied to every tensor."""

        def apply(leaf: object) -> object:
            return function(leaf) if isinstance(leaf, torch.Tensor) else leaf

        args, kwargs = pytree.tree_map(apply, (self.args, self.kwargs))
        return Example(args, kwargs)

    def with_tensors(self, tensors: Iterable[torch.Tensor]) -> Example:
        """Return the same nest with other tensors, in pytree order."""
        others = iter(tensors)
        return self.map(lambda _: next(others))

    def run(self, model: nn.Module) -> Any:
        """Return what a model gives for copies of these arguments; a forward may change its input in place."""
        own = self.map(torch.clone)
        return model(*own.args, **own.kwargs)

    def __str__(self) -> str:
        return ", ".join("x".join(map(str, tensor.shape)) for tensor in self.tensors())


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is an array, and not sparse or nested."""
    return tensor.layout is torch.strided and not tensor.is_nested
