"""A second device for machines that have none: tensors that hold CPU values, claim to be elsewhere, and are strict.

An operation on a tensor from here and one from there is refused, as CUDA refuses it; numbers and one-element tensors
from the CPU mix, as they do there. What is made without a device is made here, so that a tensor which should have
followed the model is found by the first operation that needs both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("xla:0")
WORK = ("mm", "bmm", "convolution", "cholesky", "eigh", "svd", "solve")
"""Parts of the names of operations that take a network's time."""
_MOVES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from")
_INDEXING = ("aten::index.", "aten::index_put", "aten::_unsafe_index", "aten::_index_put_impl_", "aten::index_select")


class Elsewhere(Tensor):
    """A tensor that says it is on `DEVICE`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device="meta"
        )
        made.held = held
        return made  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carried_out(func, args, kwargs or {})


def _carried_out(func: Any, args: Any, kwargs: Any) -> Any:
    name = func._schema.name + ("." + func._overloadname if func._overloadname else "")
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [leaf for leaf in leaves if not isinstance(leaf, Elsewhere)]
    there = [leaf for leaf in leaves if isinstance(leaf, Elsewhere)]
    moves = any(name.startswith(one) for one in _MOVES)
    if there and not moves and not any(name.startswith(one) for one in _INDEXING):
        wrong = [leaf for leaf in here if leaf.dim()]
        if wrong:
            raise RuntimeError(f"{name}: tensors of shape {[tuple(one.shape) for one in wrong]} are not on {DEVICE}")
    wanted = kwargs.get("device")
    goes = torch.device(wanted).type in (DEVICE.type, "meta") if wanted is not None else bool(there)
    if moves and wanted is None:
        goes = isinstance(args[0], Elsewhere)
    inner_args, inner = pytree.tree_map_only(Elsewhere, lambda one: one.held, (args, kwargs))
    if wanted is not None:
        inner["device"] = "cpu"
    out = func(*inner_args, **inner)
    back = {id(one.held): one for one in there}

    def wrapped(value: Tensor) -> Tensor:
        if not goes:
            return value
        known = back.get(id(value))
        return Elsewhere(value) if known is None else known

    return pytree.tree_map_only(Tensor, wrapped, out)


class _Factories(TorchDispatchMode):
    """What is made with `device=DEVICE` is made there."""

    def __init__(self) -> None:
        super().__init__()
        self.here: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func._schema.name.removeprefix("aten::")
        if tensors and not any(isinstance(leaf, Elsewhere) for leaf in tensors) and any(one in name for one in WORK):
            self.here.append(name)
        return _carried_out(func, args, kwargs or {})


@contextmanager
def elsewhere() -> Iterator[list[str]]:
    """Within, tensors can be made on `DEVICE` and moved there; gives the work that was done here nevertheless."""
    with _Factories() as mode:
        yield mode.here


def moved(model: nn.Module) -> nn.Module:
    """A copy of a model that is elsewhere."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Elsewhere(parameter.detach()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Elsewhere(buffer)
    return model
