"""Padding as ONNX has it: a different amount at every end of an axis, or amounts that follow from the input's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Padding:
    """What is added around the spatial axes of an input before a window runs over it.

    `pads` are all beginnings, then all ends; where they follow from the size they are zeros, and `rule` is "SAME_UPPER"
    or "SAME_LOWER". `spans` are the extents of the window, dilation included, and `strides` its steps, along every
    axis.
    """

    pads: tuple[int, ...]
    rule: str
    spans: tuple[int, ...]
    strides: tuple[int, ...]

    @staticmethod
    def of(attributes: Mapping[str, Any], kernel: Sequence[int]) -> Padding:
        """Return the padding that a node's attributes ask for."""
        ones = (1,) * len(kernel)
        strides = tuple(attributes.get("strides", ones))
        spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, attributes.get("dilations", ones), strict=True))
        rule = attributes.get("auto_pad", "NOTSET")
        pads = tuple(attributes.get("pads", 2 * (0,) * len(kernel))) if rule == "NOTSET" else 2 * (0,) * len(kernel)
        made = Padding(pads, rule if rule.startswith("SAME") else "", spans, strides)
        if made.rule and set(strides) == {1}:  # every size gets the same amounts
            return Padding(made.amounts(spans), "", spans, strides)
        return made

    def amounts(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return what is added to an input of this spatial size: all beginnings, then all ends."""
        if not self.rule:
            return self.pads
        axes = zip(size, self.spans, self.strides, strict=True)
        totals = [max(0, (-(-length // step) - 1) * step + span - length) for length, span, step in axes]
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        return (*large, *small) if self.rule == "SAME_LOWER" else (*small, *large)

    @property
    def symmetric(self) -> tuple[int, ...] | None:
        """The amounts of every axis as torch takes them; None where the two ends of an axis differ."""
        half = len(self.pads) // 2
        beginnings, ends = self.pads[:half], self.pads[half:]
        return beginnings if not self.rule and beginnings == ends and min(self.pads, default=0) >= 0 else None

    @property
    def axes(self) -> frozenset[int]:
        """Axes along which something may be added."""
        half = len(self.spans)
        if self.rule:
            return frozenset(axis for axis, span in enumerate(self.spans) if span > 1)
        return frozenset(axis for axis in range(half) if self.pads[axis] or self.pads[axis + half])

    def attributes(self, axes: frozenset[int]) -> dict[str, Any]:
        """Return the attributes of a conv node that adds the padding of some axes."""
        if self.rule:
            return {"auto_pad": self.rule}
        return {"pads": [pad if place % len(self.spans) in axes else 0 for place, pad in enumerate(self.pads)]}

    def add(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Return the input with its padding; never the input itself."""
        amounts, half = self.amounts(x.shape[2:]), len(self.spans)
        flat = [amount for axis in reversed(range(half)) for amount in (amounts[axis], amounts[axis + half])]
        return F.pad(x, flat, value=value) if any(flat) else x * 1
