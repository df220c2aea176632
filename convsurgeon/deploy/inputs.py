"""Example inputs: one call of a model, its tensors in the order of the ONNX inputs, and variations of it.

An example is a tensor, a tuple of positional arguments, or a dict of keyword arguments; arguments may be nested tuples,
lists and dicts. The exporter makes one ONNX input per tensor, in the order of the flattened arguments; keyword
arguments are put into the order of `forward`'s signature first, so that the order is one and the same everywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.errors import ExportError


@dataclass(frozen=True)
class Call:
    """The arguments of one forward call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, model: nn.Module) -> list[Tensor]:
        """The tensors that the model returns, flattened."""
        return tensors(model(*self.args, **self.kwargs))

    def tensors(self) -> list[Tensor]:
        """The input tensors, in the order of the ONNX inputs."""
        return tensors((self.args, self.kwargs))

    def map(self, function: Callable[[Tensor], Tensor]) -> Call:
        """The same call with every tensor replaced."""
        return Call(tree_map(function, self.args), tree_map(function, self.kwargs))


def as_call(model: nn.Module, example: Any) -> Call:
    """Reads a tensor, a tuple of arguments or a dict of keyword arguments as a call, on the CPU and without gradients.

    Raises:
        ExportError: The example holds no tensor.
    """
    if isinstance(example, Tensor):
        call = Call((example,), {})
    elif isinstance(example, Mapping):
        order = {name: index for index, name in enumerate(inspect.signature(model.forward).parameters)}
        names = sorted(example, key=lambda name: order.get(name, len(order)))
        call = Call((), {name: example[name] for name in names})
    elif isinstance(example, tuple | list):
        call = Call(tuple(example), {})
    elif hasattr(example, "args") and hasattr(example, "kwargs"):  # `convsurgeon.example.Example`, or one's own
        call = Call(tuple(example.args), dict(example.kwargs))
    else:
        raise ExportError(
            f"example: {type(example).__name__} is no input; pass a tensor, a tuple or a dict of arguments"
        )
    if not call.tensors():
        raise ExportError("example: holds no tensor; pass at least one")
    return call.map(lambda tensor: tensor.detach().cpu())


def tree_map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Applies a function to every tensor in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(function, item) for item in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(tree_map(function, item) for item in tree)
    if isinstance(tree, Mapping):
        return {name: tree_map(function, item) for name, item in tree.items()}
    return tree


def tensors(tree: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts, depth first."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, tuple | list):
        return [tensor for item in tree for tensor in tensors(item)]
    return []


def randomised(call: Call, seed: int) -> Call:
    """The call with floating inputs redrawn: normal, same shape, mean and standard deviation. Others are kept."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        spread = float(tensor.std(correction=0)) or 1.0
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return noise * spread + tensor.mean()

    return call.map(draw)


def resized(call: Call, dims: Mapping[int, Callable[[int], int]], rank: int = 1) -> Call:
    """The call with some dimensions of its tensors (those of at least `rank` axes) repeated or cut to another size."""

    def resize(tensor: Tensor) -> Tensor:
        if tensor.dim() < rank:
            return tensor
        for dim, size in dims.items():
            wanted, length = size(tensor.shape[dim]), tensor.shape[dim]
            index = torch.arange(wanted) % length
            tensor = tensor.index_select(dim, index)
        return tensor.contiguous()

    return call.map(resize)
