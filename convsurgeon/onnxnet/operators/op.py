"""One operator as a module, and the node that a rule reads it off.

A function has the inputs in ONNX's order and the attributes by name. A rule may be generous: nobody takes its word,
what it makes is compared with onnxruntime on the example before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto
from torch import Tensor, nn

from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.engine import Array, to_torch
from convsurgeon.onnxnet.leaf import Leaf
from convsurgeon.onnxnet.values import Values

Rule = Callable[["View"], nn.Module | None]
"""Which module of torch stands for a node, as far as its attributes and constants say; None where there is none."""

Ints = Sequence[int] | Tensor


class Op(Leaf):
    """One operator.

    Args:
        function: what it computes.
        settings: attributes.
        constants: inputs that are fixed, by position; None for one that is left out.
    """

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
        """The inputs that are not fixed, in order."""
        rest = iter(given)
        places = range(len(given) + len(self.fixed))
        args = [self._fixed(place) if place in self.fixed else next(rest) for place in places]
        return self.function(*args, **self.settings)

    def _fixed(self, place: int) -> Any:
        value = self.fixed[place]
        return getattr(self, value) if isinstance(value, str) else value

    def extra_repr(self) -> str:
        """What it is, for whoever prints the network."""
        return f"{self.function.__name__}, {self.settings}" if self.settings else self.function.__name__


@dataclass(frozen=True)
class View:
    """One node and what is known of what it reads."""

    node: NodeProto
    values: Values
    opset: int

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; bytes as text."""
        return proto.attributes(self.node).get(name, default)

    def array(self, place: int) -> Array | None:
        """A constant input, None where it is none or not there."""
        return self.values.array(self.node.input[place]) if place < len(self.node.input) else None

    def tensor(self, place: int) -> Tensor | None:
        """A constant input as torch has it."""
        array = self.array(place)
        return None if array is None else to_torch(array)

    def has(self, place: int) -> bool:
        """Whether an input is there."""
        return place < len(self.node.input) and bool(self.node.input[place])

    def shape(self, place: int = 0) -> tuple[int, ...]:
        """Of an input on the example."""
        return self.values.shape(self.node.input[place]) or ()

    @property
    def dims(self) -> int:
        """Spatial axes of the first input."""
        return len(self.shape()) - 2

    @property
    def outputs(self) -> int:
        """How many outputs somebody may read."""
        return sum(bool(name) for name in self.node.output)

    def constants(self) -> dict[int, Any]:
        """Fixed inputs by position: floating point as tensors, whole numbers as a tuple, None for what is left out."""
        found: dict[int, Any] = {}
        for place, name in enumerate(self.node.input):
            array = self.values.array(name)
            if not name:
                found[place] = None
            elif array is not None:
                found[place] = to_torch(array) if array.dtype.kind == "f" else tuple(array.reshape(-1).tolist())
        return found

    def op(self, function: Callable[..., Any], **settings: Any) -> Op:
        """The operator, with its constant inputs."""
        return Op(function, settings, self.constants())

    def old(self, function: Callable[..., Any], *names: str, **settings: Any) -> Op:
        """An operator whose inputs were attributes once, of these names, from the second input on."""
        fixed = self.constants()
        for place, name in enumerate(names, start=1):
            if not self.has(place):
                value = self.get(name)
                fixed[place] = tuple(value) if isinstance(value, list) else value
        while fixed and fixed.get(max(fixed)) is None and max(fixed) >= len(self.node.input):
            del fixed[max(fixed)]
        return Op(function, settings, fixed)


def plain(function: Callable[..., Any]) -> Rule:
    """The rule of an operator without attributes."""
    return lambda view: view.op(function)


def ints(values: Ints) -> list[int]:
    """Whole numbers that were fixed, or are computed."""
    return [int(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]
