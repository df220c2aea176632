"""What the pass asks of a form, any object with these methods; nothing is registered anywhere.

Forms that can also be fitted to data, timed and told apart by rank derive from `Branched`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from convsurgeon.forms.geometry import Geometry


class Form(Protocol):
    """What the pass asks of a form. All methods are pure but `fill`."""

    @property
    def label(self) -> str:
        """Name and parameters in a table's words: `separable rank 2`."""
        ...

    def check(self, geometry: Geometry) -> str | None:
        """Why a conv of this geometry cannot take the form, or None."""
        ...

    def settle(self, geometry: Geometry, weight: Tensor) -> Self:
        """The form with every rule (such as `Energy`) replaced by the number it gives for this kernel."""
        ...

    def lost(self, geometry: Geometry, weight: Tensor) -> float | None:
        """Share of the kernel's energy that the settled form drops; None where it keeps nothing on purpose."""
        ...

    def params(self, geometry: Geometry) -> int:
        """Parameters of the settled form."""
        ...

    def macs(self, geometry: Geometry, size: Sequence[int]) -> int:
        """Multiply-accumulates of the settled form for one image of spatial `size`."""
        ...

    def build(self, geometry: Geometry, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The modules of the settled form; parameters need no values yet."""
        ...

    def fill(self, module: nn.Module, geometry: Geometry, weight: Tensor, bias: Tensor | None) -> None:
        """Gives a module made by `build` its parameters."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The form as JSON; `form` holds its name."""
        ...
