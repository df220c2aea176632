"""Example inputs for the exporter and for parity: in the order of the ONNX inputs, and variations of them.

The exporter makes one ONNX input per tensor, in the order of the flattened arguments; keyword arguments are put into
the order of `forward`'s signature first, so that the order is one and the same everywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import tensors_in


def ordered(model: nn.Module, example: object) -> Example:
    """Reads what a user passes as `example`, on the CPU and without gradients, keywords in `forward`'s order.

    Raises:
        CaptureError: The example holds no tensor.
    """
    given = Example.of(example)
    order = {name: index for index, name in enumerate(inspect.signature(model.forward).parameters)}
    names = sorted(given.kwargs, key=lambda name: order.get(name, len(order)))
    return Example(given.args, {name: given.kwargs[name] for name in names}).map(lambda one: one.detach().cpu())


def run(model: nn.Module, example: Example) -> list[Tensor]:
    """The tensors that the model returns, flattened."""
    return tensors_in(example.run(model))


def randomised(example: Example, seed: int) -> Example:
    """The example with floating inputs redrawn: normal, same shape, mean and deviation. Others are kept."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        spread = float(tensor.std(correction=0)) or 1.0
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return noise * spread + tensor.mean()

    return example.map(draw)


def resized(
    example: Example,
    dims: Mapping[int, Callable[[int], int]],
    rank: int = 1,
    fixed: Sequence[Collection[int]] = (),
) -> Example:
    """The example with some dimensions of its tensors (those of at least `rank` axes) repeated or cut.

    Args:
        example: whose tensors are looked at.
        dims: axis -> the new size from the old one.
        rank: tensors of fewer axes stay as they are.
        fixed: of every tensor the axes that stay as they are; none if not given.
    """
    kept = iter(fixed or [()] * len(example.tensors()))

    def resize(tensor: Tensor) -> Tensor:
        held = next(kept, ())
        if tensor.dim() < rank:
            return tensor
        for dim, size in dims.items():
            if dim in held:
                continue
            wanted, length = size(tensor.shape[dim]), tensor.shape[dim]
            index = torch.arange(wanted) % length
            tensor = tensor.index_select(dim, index)
        return tensor.contiguous()

    return example.map(resize)
