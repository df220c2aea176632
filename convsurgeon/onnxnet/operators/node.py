"""A node as the translators see it, which say what module of torch stands for it.

A translator may be generous: what it makes is compared with onnxruntime on the example before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto
from torch import Tensor, nn

from convsurgeon.base.arrays import Array
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.modules import Operator
from convsurgeon.onnxnet.values import Values

Translator = Callable[["NodeView"], nn.Module | None]
"""Gives the module that stands for a node, as far as its attributes and constants say; None where there is none."""

Ints = Sequence[int] | Tensor


@dataclass(frozen=True)
class NodeView:
    """One node and what is known of what it reads."""

    node: NodeProto
    values: Values
    opset: int

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, text as str."""
        return proto.attributes(self.node).get(name, default)

    def has(self, place: int) -> bool:
        """Return whether an input is there."""
        return place < len(self.node.input) and bool(self.node.input[place])

    def array(self, place: int) -> Array | None:
        """Return a constant input; None where it is not constant, or not there."""
        return self.values.array(self.node.input[place]) if self.has(place) else None

    def tensor(self, place: int) -> Tensor | None:
        """Return a constant input as torch has it."""
        return self.values.tensor(self.node.input[place]) if self.has(place) else None

    def varies(self, place: int) -> bool:
        """Return whether an input is there and not constant."""
        return self.has(place) and self.array(place) is None

    def shape(self, place: int = 0) -> tuple[int, ...]:
        """Return the shape of an input on the example."""
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
        """Return fixed inputs by position: tensors, tuples of whole numbers, None for what is left out."""
        found: dict[int, Any] = {}
        for place, name in enumerate(self.node.input):
            array = self.values.array(name)
            if not name:
                found[place] = None
            elif array is not None:
                found[place] = self.tensor(place) if array.dtype.kind == "f" else tuple(array.reshape(-1).tolist())
        return found

    def operator(self, function: Callable[..., Any], **settings: Any) -> Operator:
        """Return a module of a function, with the constant inputs."""
        return Operator(function, settings, self.constants())

    def older_operator(self, function: Callable[..., Any], *names: str, **settings: Any) -> Operator:
        """Return a module whose inputs were attributes of these names once, from the second input on."""
        fixed = self.constants()
        for place, name in enumerate(names, start=1):
            if not self.has(place):
                value = self.get(name)
                fixed[place] = tuple(value) if isinstance(value, list) else value
        while fixed and fixed.get(max(fixed)) is None and max(fixed) >= len(self.node.input):
            del fixed[max(fixed)]
        return Operator(function, settings, fixed)


def plain(function: Callable[..., Any]) -> Translator:
    """Return the translator of an operator without attributes."""
    return lambda view: view.operator(function)


def to_ints(values: Ints) -> list[int]:
    """Return whole numbers that are fixed, or computed by the network."""
    return [int(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]


def with_weights(module: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a layer with these weights."""
    module.weight = nn.Parameter(weight.contiguous().clone())
    module.bias = None if bias is None else nn.Parameter(bias.clone())
    assert isinstance(module, nn.Module)
    return module
