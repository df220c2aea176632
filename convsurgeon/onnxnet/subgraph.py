"""Pieces: what has no translation, as large as it goes without a way out of the piece and back in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto, numpy_helper
from torch import Tensor

from convsurgeon.onnxnet.convs import hidden_convs
from convsurgeon.onnxnet.engine import Runner, to_torch, type_of
from convsurgeon.onnxnet.leaf import Foreign, HiddenConv
from convsurgeon.onnxnet.macs import counts, macs_of
from convsurgeon.onnxnet.values import Values, reads

_SHAPES = ("Shape", "Size")


class Piece(Foreign):
    """Nodes that onnxruntime runs; its session is shared by all copies.

    Args:
        runner: of the piece's graph.
        about: what is known of it, for `Foreign`.
    """

    def __init__(
        self, runner: Runner, macs: int, params: int, size: int, convs: tuple[HiddenConv, ...], cuts: tuple[bool, ...]
    ) -> None:
        super().__init__(macs, params, size, convs, cuts)
        self.runner = runner
        self.operators = tuple(dict.fromkeys(str(node.op_type) for node in runner.model.graph.node))

    def forward(self, *given: Any) -> Any:
        """The piece's inputs in order; one value or a tuple of them."""
        if any(type(value) is not Tensor for value in given if isinstance(value, Tensor)):
            raise NotImplementedError("onnxruntime wants values, not a fake tensor")
        made = [to_torch(value) for value in self.runner.run(given)]
        devices = [value.device for value in given if isinstance(value, Tensor) and value.device.type != "cpu"]
        if devices:
            made = [value.to(devices[0]) if isinstance(value, Tensor) else value for value in made]
        return made[0] if len(made) == 1 else tuple(made)

    def extra_repr(self) -> str:
        """Its operators, for whoever prints the network."""
        return f"onnxruntime: {', '.join(self.operators)}"


def grouped(nodes: Sequence[NodeProto], ready: Collection[str]) -> list[list[int]]:
    """Positions of the nodes that can run now, one after the other, in groups that have nothing to do with each other.

    Args:
        nodes: those left, in order; None where a node is not for a piece.
        ready: values that are there.
    """
    known, owner = set(ready), dict[str, int]()
    groups: dict[int, list[int]] = {}
    for place, node in enumerate(nodes):
        needs = reads(node)
        if not all(name in known or name in owner for name in needs):
            continue
        mine = sorted({owner[name] for name in needs if name in owner})
        group = mine[0] if mine else place
        members = [*(one for key in mine for one in groups.pop(key)), place]
        groups[group] = members
        owner.update((name, group) for one in members for name in nodes[one].output if name)
    return [sorted(members) for _, members in sorted(groups.items())]


def piece_of(nodes: Sequence[NodeProto], values: Values, outside: Collection[str], reasons: dict[str, str]) -> Piece:
    """A piece of some nodes.

    Args:
        nodes: in order.
        values: of the whole graph.
        outside: names that others read, or that are outputs of the network.
        reasons: why a conv among them is no module, by its first output.
    """
    made = {name for node in nodes for name in node.output if name}
    needs = list(dict.fromkeys(name for node in nodes for name in reads(node) if name not in made))
    graph = GraphProto(name="piece")
    graph.node.extend(nodes)
    for name in needs:
        array = values.array(name)
        if array is None:
            graph.input.append(ValueInfoProto(name=name, type=_type(name, values)))
        else:
            graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    outputs = [name for node in nodes for name in node.output if name in outside]
    graph.output.extend(values.declared(name) for name in outputs)
    graph.value_info.extend(values.declared(name) for name in sorted(made.difference(outputs)))
    source = values.source.model
    model = ModelProto(ir_version=max(4, source.ir_version), graph=graph)
    model.opset_import.extend(source.opset_import)
    model.functions.extend(source.functions)
    stored = [values.array(tensor.name) for tensor in graph.initializer]
    floats = [array for array in stored if array is not None and array.dtype.kind == "f"]
    return Piece(
        Runner(model, outputs, optimised=True),
        _macs(nodes, values),
        sum(array.size for array in floats),
        sum(array.nbytes for array in floats),
        hidden_convs(nodes, values, reasons),
        tuple(_read(info.name, nodes) for info in graph.input),
    )


def _type(name: str, values: Values) -> TypeProto:
    declared = next((info.type for info in values.graph.input if info.name == name), None)
    kind = TypeProto()
    kind.CopyFrom(type_of(values.types[name]) if declared is None else declared)
    shape = values.shape(name)
    if kind.HasField("tensor_type"):
        kind.tensor_type.ClearField("shape")
        if shape is not None:  # how many axes, not how long they are
            kind.tensor_type.shape.SetInParent()
            for _ in shape:
                kind.tensor_type.shape.dim.add()
    return kind


def _read(name: str, nodes: Sequence[NodeProto]) -> bool:
    """Whether anybody looks at a value, and not only at its shape."""
    return any(name in reads(node) and node.op_type not in _SHAPES for node in nodes)


def _macs(nodes: Sequence[NodeProto], values: Values) -> int:
    found = 0
    for node in nodes:
        if counts(node):
            found += macs_of(node, values.shapes([*node.input, *node.output])) or 0
        elif node.op_type in ("LSTM", "GRU", "RNN"):
            found += _recurrent(node, values)
    return found


def _recurrent(node: NodeProto, values: Values) -> int:
    """Two products in every step: of the input and of the state."""
    x, *weights = (values.shape(name) for name in node.input[:3])
    if x is None or any(weight is None for weight in weights):
        return 0
    return x[0] * x[1] * sum(int(np.prod(weight)) for weight in weights if weight is not None)
