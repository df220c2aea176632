"""A copy of a model with other modules in the places of some."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from convsurgeon.base.errors import CaptureError, describe

M = TypeVar("M", bound=nn.Module)


def swap_modules(model: M, new: dict[int, Any]) -> M:
    """Return a copy of a model with new modules in the places of some, by the `id` of what they replace."""
    try:
        converted = copy.deepcopy(model, new | _detached(model))
        placed = {id(module) for module in converted.modules()}  # fails where the copy is half-made
    except Exception as error:
        raise CaptureError(
            f"model: {type(model).__name__} cannot be copied ({describe(error)}); "
            "copy.deepcopy(model) must work, and the model you pass is never changed in place"
        ) from error
    if any(id(module) not in placed for module in new.values()):
        kind = type(model).__name__
        raise CaptureError(f"model: {kind} copies itself in its own way (__deepcopy__, __reduce__); remove that first")
    return converted


def _detached(model: nn.Module) -> dict[int, Tensor]:
    """Return copies of the tensors that modules keep of a forward (activations, computed weights), by `id`.

    `copy.deepcopy` refuses them for the graph behind them; whoever keeps them computes them anew.
    """
    kept = [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in ("_parameters", "_modules") and isinstance(value, Tensor | dict | list | tuple)
    ]
    leaves = pytree.tree_leaves(kept)
    return {id(leaf): leaf.detach().clone() for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_leaf}
