"""Parameters, MACs, bytes and peak live activation, counted on what exists.

MACs are half of what torch's own flop formulas give for the operators that really ran (convolutions, matrix products,
attention); element-wise work, norms and pooling count nothing, as everywhere in the literature.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from convsurgeon.onnxnet.modules import Subgraph


@dataclass(frozen=True)
class Cost:
    """What a model costs on its example, batch included.

    `peak_activation_bytes` is the largest sum of tensors that are alive at once when the graph runs in order and
    drops each tensor after its last use; weights are not in it, and an opaque region counts its inputs and outputs.
    """

    params: int
    macs: int
    weight_bytes: int
    peak_activation_bytes: int

    @property
    def flops(self) -> int:
        """Two floating-point operations per MAC."""
        return 2 * self.macs


def count_weights(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters and their bytes, shared ones once, and those that another runtime holds."""
    own, held = list(model.parameters()), [module for module in model.modules() if isinstance(module, Subgraph)]
    count = sum(parameter.numel() for parameter in own) + sum(module.params for module in held)
    size = sum(parameter.numel() * parameter.element_size() for parameter in own)
    return count, size + sum(module.weight_bytes for module in held)


class MacCounter(TorchDispatchMode):
    """Adds up the MACs of every operator that runs inside it, on real, fake or meta tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # composite operators are counted by their parts
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self.macs += formula(*args, **kwargs, out_val=out) // 2
        return out


def live_bytes(values: Iterable[object]) -> int:
    """Bytes behind all tensors in a nest of values; views of one storage count once."""
    storages: dict[int, int] = {}
    for leaf in pytree.tree_leaves(list(values)):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            storage = leaf.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())
