"""Example inputs for the exporter and for parity, in the order of the ONNX inputs, and variations of them.

The exporter makes one ONNX input per tensor, in the order of the flattened arguments; keyword arguments are put into
the order of `forward`'s signature first, so that the order is the same everywhere.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from convsurgeon.graph.example import Example


def order_example(model: nn.Module, example: object) -> Example:
    """Return what a user passes as `example` as plain tensors on the CPU, keywords in `forward`'s order."""
    given = Example.of(example)
    order = {name: index for index, name in enumerate(inspect.signature(model.forward).parameters)}
    names = sorted(given.kwargs, key=lambda name: order.get(name, len(order)))
    return Example(given.args, {name: given.kwargs[name] for name in names}).map(
        lambda one: one.detach().cpu().contiguous()
    )


def copy_to_cpu(model: nn.Module) -> nn.Module:
    """Return the model itself if it is on the CPU, else a copy there: the file is judged by CPU arithmetic."""
    places = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    return model if places <= {"cpu"} else copy.deepcopy(model).cpu()


def randomise(example: Example, seed: int) -> Example:
    """Return the example with floating inputs redrawn: normal, with the same shape, mean and deviation."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        spread = float(tensor.std(correction=0)) or 1.0
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device="cpu")
        return noise * spread + tensor.mean()

    return example.map(draw)


def resize_example(
    example: Example, dims: Mapping[int, Callable[[int], int]], rank: int = 1, fixed: Sequence[Collection[int]] = ()
) -> Example:
    """Return the example with axes repeated or cut to the sizes that `dims` computes from the old ones.

    Tensors of fewer axes than `rank`, and the axes in `fixed` (one collection per tensor), stay as they are.
    """
    held = iter(fixed or [()] * len(example.tensors()))

    def change(tensor: Tensor) -> Tensor:
        kept = next(held, ())
        if tensor.dim() < rank:
            return tensor
        for dim, size in dims.items():
            if dim not in kept:
                index = torch.arange(size(tensor.shape[dim]), device="cpu") % tensor.shape[dim]
                tensor = tensor.index_select(dim, index)
        return tensor.contiguous()

    return example.map(change)
