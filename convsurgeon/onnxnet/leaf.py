"""What a trace does not look into: single operators in torch, and pieces that another runtime computes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from convsurgeon.forms.geometry import Geometry


class Leaf(nn.Module):
    """One node of a graph, whatever its forward does."""


@dataclass(frozen=True)
class HiddenConv:
    """A conv that runs inside of a piece: what it is, what it sees and gives on the example, why it stays there."""

    name: str
    kind: str
    geometry: Geometry
    shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    params: int
    macs: int
    reason: str


class Foreign(Leaf):
    """A part of a network that another runtime computes; what torch cannot count of it is said here.

    Args:
        macs: of one run on the example.
        params: floating-point weights that it holds.
        weight_bytes: of those.
        convs: in it, which are left alone.
        cuts: whether values of floating point go through it, which gradients cannot.
    """

    def __init__(
        self, macs: int, params: int, weight_bytes: int, convs: tuple[HiddenConv, ...], cuts: tuple[bool, ...]
    ) -> None:
        super().__init__()
        self.operators: tuple[str, ...] = ()
        """Of its nodes, each once."""
        self.macs, self.params, self.weight_bytes = macs, params, weight_bytes
        self.convs, self.cuts = convs, cuts
