"""One process or many: the sums over all of them, through torch's own distributed engine where it is running."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _running() else 1


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if _running() else 0


def added(*tensors: Tensor) -> list[Tensor]:
    """The tensors summed over all processes; every process must call it with tensors of the same shapes."""
    if not _running():
        return list(tensors)
    sums = [tensor.clone() for tensor in tensors]
    for tensor in sums:
        dist.all_reduce(tensor)
    return sums


def agree(module: nn.Module) -> None:
    """Gives every process the first one's parameters and buffers, bit for bit."""
    if _running():
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, 0)


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
