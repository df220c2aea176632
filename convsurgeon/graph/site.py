"""A site: one convolution of a model with all its calls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from convsurgeon.forms.form import Form
from convsurgeon.forms.geometry import Geometry


@dataclass(frozen=True)
class Call:
    """One execution of a conv: shapes of what went in and came out, batch and channels included."""

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class Site:
    """One convolution: a module under all its names, or a functional call by the name of its weight.

    `macs` are those of all calls on the example; `share` is their part of the whole model's. `obstacle` says why no
    form whatever can take its place, and is empty where one may.
    """

    name: str
    aliases: tuple[str, ...]
    kind: str
    geometry: Geometry
    calls: tuple[Call, ...]
    params: int
    macs: int
    share: float
    obstacle: str
    reads_input: bool = field(default=False, compare=False)
    """Whether nothing that another conv has made reaches it; a fact about the network, which plans do not keep."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and its aliases."""
        return (self.name, *self.aliases)

    def images(self, call: Call) -> int:
        """Batch size of a call; 1 for a call without batch dimension."""
        lead = call.input_shape[: -1 - len(self.geometry.kernel_size)]
        return math.prod(lead)

    def size(self, call: Call) -> tuple[int, ...]:
        """Spatial size of a call's input."""
        return call.input_shape[-len(self.geometry.kernel_size) :]

    def macs_as(self, form: Form) -> int:
        """Return the MACs of all calls in a form."""
        return sum(self.images(call) * form.macs(self.geometry, self.size(call)) for call in self.calls)
