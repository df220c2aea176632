"""What stands in the place of a rewritten conv: summed branches of plain convs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from convsurgeon.forms.geometry import Geometry

NORMS = {"batch": nn.BatchNorm2d}
ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU, "hardswish": nn.Hardswish, "gelu": nn.GELU}


class SummedBranches(nn.Module):
    """`sum_t branches[t](x)`, each branch a chain of plain convs with telling names.

    The attributes of the conv it replaces that other code likes to read (`out_channels`, `stride`, ...) are kept.

    Args:
        branches: chains of equal input and output shape; at least one.
        geometry: of the conv that they replace.
    """

    def __init__(self, branches: Sequence[nn.Module], geometry: Geometry) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.in_channels = geometry.in_channels
        self.out_channels = geometry.out_channels
        self.kernel_size = geometry.kernel_size
        self.stride = geometry.stride
        self.padding = geometry.padding
        self.dilation = geometry.dilation
        self.groups = geometry.groups

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name nn.Conv2d gives it, for callers by keyword
        """Maps (N, C, H, W) to (N, O, H', W')."""
        chains = iter(self.branches)
        total: Tensor = next(chains)(input)
        for chain in chains:
            total = chain(input) + total  # the new term first: the other order keeps every branch alive in onnxruntime
        return total


def chain(
    stages: Sequence[tuple[str, Geometry]],
    norm: str | None,
    activation: str | None,
    **factory: Any,
) -> nn.Sequential:
    """One branch: the named convs in a row, `norm` and `activation` after every one but the last."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, geometry in stages:
        layers[name] = geometry.module(**factory)
        if name == stages[-1][0]:
            break
        if norm is not None:
            layers[f"{name}_norm"] = NORMS[norm](geometry.out_channels, **factory)
        if activation is not None:
            layers[f"{name}_activation"] = ACTIVATIONS[activation]()
    return nn.Sequential(layers)
