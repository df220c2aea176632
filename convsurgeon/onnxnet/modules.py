"""Modules that a network from an ONNX file is made of, which a trace does not look into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convsurgeon.forms.geometry import Geometry

_HALF = 10  # onnx.TensorProto.FLOAT16; onnx itself is not loaded here


class Leaf(nn.Module):
    """One node of a trace, whatever its forward does."""


class Operator(Leaf):
    """A function of inputs in ONNX's order, with attributes by name and constants by position; None is left out."""

    def __init__(
        self,
        function: Callable[..., Any],
        settings: dict[str, Any] | None = None,
        constants: dict[int, Any] | None = None,
    ) -> None:
        super().__init__()
        self.function, self.settings = function, dict(settings or {})
        self.fixed: dict[int, Any] = {}
        for place, value in (constants or {}).items():
            self.fixed[place] = f"constant{place}" if isinstance(value, Tensor) else value
            if isinstance(value, Tensor):
                self.register_buffer(f"constant{place}", value, persistent=False)

    def forward(self, *given: Any) -> Any:
        """Return what the function makes of the inputs that are not fixed, and those that are."""
        rest = iter(given)
        places = range(len(given) + len(self.fixed))
        args = [self._constant(place) if place in self.fixed else next(rest) for place in places]
        return self.function(*args, **self.settings)

    def _constant(self, place: int) -> Any:
        value = self.fixed[place]
        return getattr(self, value) if isinstance(value, str) else value

    def extra_repr(self) -> str:
        """Return the function and its settings."""
        return f"{self.function.__name__}, {self.settings}" if self.settings else self.function.__name__


@dataclass(frozen=True)
class FileInput:
    """An input of the file: its name, its type in torch, its shape on the example, and the names of open dimensions.

    `kind` is its type in the file, by ONNX's number.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    open: tuple[tuple[int, str], ...]
    kind: int

    @property
    def half(self) -> bool:
        """Whether the file has it in half precision, which is float32 here."""
        return self.kind == _HALF


@dataclass(frozen=True)
class HiddenConv:
    """A conv that runs inside of a subgraph: its shapes on the example, and why it stays there."""

    name: str
    kind: str
    geometry: Geometry
    shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    params: int
    macs: int
    reason: str


class Subgraph(Leaf):
    """A part of a network that onnxruntime runs, through which no gradients go; copies share its session.

    `session` is a `LazySession`, and `operators` are those of its nodes, each once. `macs` are of one run on the
    example, `params` and `weight_bytes` of floating-point weights. `convs` are left alone. `cuts` tells of each input
    whether its values are read, and not only its shape.
    """

    def __init__(
        self,
        session: Any,
        *,
        operators: tuple[str, ...],
        macs: int,
        params: int,
        weight_bytes: int,
        convs: tuple[HiddenConv, ...],
        cuts: tuple[bool, ...],
    ) -> None:
        super().__init__()
        self.session, self.operators = session, operators
        self.macs, self.params, self.weight_bytes = macs, params, weight_bytes
        self.convs, self.cuts = convs, cuts

    def forward(self, *given: Any) -> Any:
        """Return one value or a tuple of them, from the inputs in order."""
        if any(type(value) is not Tensor for value in given if isinstance(value, Tensor)):
            raise NotImplementedError("onnxruntime wants values, not a fake tensor")
        made = [to_torch(value) for value in self.session.run(given)]
        devices = [value.device for value in given if isinstance(value, Tensor) and value.device.type != "cpu"]
        if devices:
            made = [value.to(devices[0]) if isinstance(value, Tensor) else value for value in made]
        return made[0] if len(made) == 1 else tuple(made)

    def extra_repr(self) -> str:
        """Return the operators."""
        return f"onnxruntime: {', '.join(self.operators)}"


def to_torch(value: Any) -> Any:
    """Return a value of the runtime as torch takes it: half precision as float32, other than numbers as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        return value
    if value.dtype == np.float16:
        value = value.astype(np.float32)
    made = value if value.flags.writeable and value.flags.c_contiguous else np.array(value, order="C")
    return torch.from_numpy(made)
