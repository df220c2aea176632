"""The modules that take the place of a conv: summed branches of plain convs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convsurgeon.forms.geometry import WINDOW, Geometry

NORMS = {"batch": nn.BatchNorm2d}
ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU, "hardswish": nn.Hardswish, "gelu": nn.GELU}


class InPlaceOfLayer(nn.Module):
    """A module in the place of a layer, without its `weight` and `bias`: asking for them says what to do."""

    instead: ClassVar[str]
    """What became of the weights and what to do, as the end of the message."""

    def __getattr__(self, name: str) -> Any:
        """Say what to do for a weight that the module does not have."""
        if name in ("weight", "bias"):
            raise AttributeError(f"{type(self).__name__} has no {name}: {self.instead}")
        return super().__getattr__(name)


class SummedBranches(InPlaceOfLayer):
    """`sum_t branches[t](x)`, each branch a chain of plain convs with telling names, one at least.

    The attributes of the conv it replaces that other code likes to read (`out_channels`, `stride`, ...) are kept. It
    has no `weight`: code that folds a batch norm into a conv would put a dense one in its place, or lose what it folds.
    """

    instead = (
        "convsurgeon put it in the place of a conv, and its branches have the weights; fold batch norms (model.fuse() "
        "and the like) before converting"
    )

    def __init__(self, branches: Sequence[nn.Module], geometry: Geometry) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        for name in ("in_channels", "out_channels", *WINDOW):
            setattr(self, name, getattr(geometry, name))
        self.transposed = False
        self.output_padding = (0,) * len(geometry.kernel_size)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name nn.Conv2d gives it, for callers by keyword
        """Map (N, C, H, W) to (N, O, H', W')."""
        total: Tensor | None = None  # written so that torch.jit.script takes it, too
        for chain in self.branches:
            # the new term first: the other order keeps every branch alive in onnxruntime
            total = chain(input) if total is None else chain(input) + total
        assert total is not None
        return total


def chain(
    stages: Sequence[tuple[str, Geometry]], norm: str | None, activation: str | None, **factory: Any
) -> nn.Sequential:
    """Return one branch: the named convs in a row, `norm` and `activation` after every one but the last."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, geometry in stages:
        layers[name] = geometry.module(**factory)
        if name == stages[-1][0]:
            break
        if norm is not None:
            layers[f"{name}_norm"] = NORMS[norm](geometry.out_channels, **factory)
        if activation is not None:
            layers[f"{name}_activation"] = ACTIVATIONS[activation]()
    branch = nn.Sequential(layers)
    # torch.jit.script gives containers of the same layers the same code, in whatever order they hold them
    vars(branch).update(order=tuple(layers), __constants__=["order"])
    return branch


def compose(stages: Sequence[tuple[Tensor, int]], groups: int) -> Tensor:
    """Return the dense kernel (O, C/groups, kh, kw) that convs in a row compute; no two windows may share an axis.

    `stages` holds kernel (outputs, inputs per group, kh, kw) and groups of every conv; `groups` divides those of each.
    """
    (first, parts), *rest = stages
    dense = first.unflatten(0, (groups, parts // groups, -1))  # group, part, output, input of the part, window
    for kernel, number in rest:
        own = kernel.unflatten(0, (groups, number // groups, -1))
        if own.shape[1] == 1:  # it sees all parts
            own = own[:, 0].unflatten(2, (dense.shape[1], -1))
            dense = torch.einsum("gnamkl,gamcij->gnacikjl", own, dense).flatten(2, 3)[:, None]
        else:
            dense = _join(dense)[:, 0].unflatten(1, (own.shape[1], -1))
            dense = torch.einsum("gbnmkl,gbmcij->gbncikjl", own, dense).flatten(1, 2)[:, None]
        dense = dense.flatten(4, 5).flatten(5, 6)
    return _join(dense).flatten(0, 2)


def _join(parts: Tensor) -> Tensor:
    """Return parts (g, a, m, c, ...) as one (g, 1, a*m, a*c, ...), zero where no part sees a channel."""
    if parts.shape[1] == 1:
        return parts
    blocks = torch.diag_embed(parts.movedim(1, -1)).movedim((-2, -1), (1, 3))
    return blocks.flatten(3, 4).flatten(1, 2)[:, None]
