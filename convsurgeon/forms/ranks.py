"""Rules for a rank: how much of a kernel's energy to keep, or how much of a layer's MACs to leave it."""

from __future__ import annotations

import bisect
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convsurgeon.base.errors import FormError


@dataclass(frozen=True)
class Rule:
    """A share from which the rank of every layer follows.

    Args:
        share: 0 < share <= 1.
    """

    share: float

    def __post_init__(self) -> None:
        if not isinstance(self.share, numbers.Real) or not 0 < self.share <= 1:
            name = type(self).__name__
            raise FormError(f"{name}: the share must lie in (0, 1], got {self.share!r}; pass for example {name}(0.5)")

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()} {self.share:g}"


class Energy(Rule):
    """The smallest rank that keeps this share of a kernel's energy (its squared norm)."""

    def rank(self, energies: Tensor) -> int:
        """Return the rank for a spectrum (largest first), at least 1."""
        reached = energies.cumsum(0) >= self.share * energies.sum() * (1 - 1e-12)
        return int(reached.to(torch.int8).argmax()) + 1


class Share(Rule):
    """The largest rank that leaves a layer this share of its MACs, at least 1."""

    def rank(self, full: int, macs: Callable[[int], int], dense: int) -> int:
        """Return the rank up to `full`, given the MACs of a rank and those of the dense layer."""
        return max(1, bisect.bisect_right(range(1, full + 1), self.share * dense, key=macs))


def rule_from_dict(values: Mapping[str, Any]) -> Rule:
    """Read a rule from JSON, such as {"energy": 0.9}; raise a FormError for what is not one."""
    for rule in (Energy, Share):
        share = values.get(rule.__name__.lower())
        if isinstance(share, int | float) and len(values) == 1:
            return rule(share)
    raise FormError(f'a rank rule reads {{"energy": 0.9}} or {{"share": 0.5}}, got {values}')
