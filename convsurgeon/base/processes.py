"""One process or many: sums over all of them, and what one does for all, by `torch.distributed`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that `torchrun` started, if it did, and leave them at the end.

    Tensors on the CPU go through gloo and those on a GPU through nccl; with GPUs every process takes its own.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or _running():
        yield
        return
    from torch._C._distributed_c10d import PrefixStore  # not in every build of torch
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    store, number, count = next(rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # On one machine torchrun keeps its store when it restarts the workers, and a new one may then find the address
        # that a killed one left (gloo: connection refused). So every attempt gets keys of its own.
        store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _running() else 1


def rank() -> int:
    """Return this process's number."""
    return dist.get_rank() if _running() else 0


def added(*tensors: Tensor) -> list[Tensor]:
    """Return tensors summed over all processes; every process must call it with tensors of the same shapes."""
    if not _running():
        return list(tensors)
    sums = [tensor.clone() for tensor in tensors]
    for tensor in sums:
        dist.all_reduce(tensor)
    return sums


def totals(*numbers: float) -> list[float]:
    """Return numbers summed over all processes, in float64."""
    sums: list[float] = added(torch.tensor(numbers, dtype=torch.float64, device="cpu"))[0].tolist()
    return sums


def agree(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers, bit for bit."""
    if _running():
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, 0)


def shared(make: Callable[[], T]) -> T:
    """Return in every process what `make`, called in the first one alone, returns there, or raise what it raised."""
    if not _running():
        return make()
    found: list[Any] = [None]
    if rank() == 0:
        try:
            found = [(True, make())]
        except Exception as error:  # the others wait for an answer, whatever it is
            found = [(False, error)]
    dist.broadcast_object_list(found, 0)
    fine, value = found[0]
    if not fine:
        raise value
    result: T = value
    return result


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
