"""Subgraphs that onnxruntime runs: what has no translation, as large as it goes without a way out and back in."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.convs import hidden_convs
from convsurgeon.onnxnet.modules import Subgraph
from convsurgeon.onnxnet.session import open_session, session_options
from convsurgeon.onnxnet.values import Values

_ELEMENTS = {
    "float": TensorProto.FLOAT,
    "double": TensorProto.DOUBLE,
    **{name.lower(): value for name, value in TensorProto.DataType.items() if name != "UNDEFINED"},
}


class LazySession:
    """A graph that onnxruntime runs; its session is made when it is first needed, and shared by all copies.

    It has no `__dict__` on purpose: restoring what a run of a model has changed would throw the session away.
    """

    __slots__ = ("_lock", "_session", "inputs", "model", "outputs")

    def __init__(self, model: ModelProto, outputs: Sequence[str]) -> None:
        self.model, self.outputs = model, tuple(outputs)
        self.inputs = tuple((info.name, _numpy_type(info.type)) for info in model.graph.input)
        self._session: Any = None
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> LazySession:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return LazySession, (self.model, self.outputs)

    def run(self, values: Sequence[Any]) -> list[Any]:
        """Return arrays in the order of the outputs; what is not a tensor stays what the runtime makes of it."""
        feed = {
            name: _as_runtime_takes(value, wanted) for (name, wanted), value in zip(self.inputs, values, strict=True)
        }
        with self._lock:
            if self._session is None:
                self._session = open_session(self.model, session_options(torch.get_num_threads(), spinning=False))
        return list(self._session.run(list(self.outputs), feed))


def _as_runtime_takes(value: Any, wanted: np.dtype[Any] | None) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and wanted is not None:
        return np.ascontiguousarray(value.astype(wanted, copy=False)).reshape(value.shape)
    return value


def _numpy_type(kind: TypeProto) -> np.dtype[Any] | None:
    if not kind.HasField("tensor_type") or kind.tensor_type.elem_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return None
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type))


def group_nodes(nodes: Sequence[NodeProto], ready: Collection[str]) -> list[list[int]]:
    """Return positions of the nodes that can run on the values that are ready, in groups that share none."""
    known, owner = set(ready), dict[str, int]()
    groups: dict[int, list[int]] = {}
    for place, node in enumerate(nodes):
        needs = proto.reads(node)
        if not all(name in known or name in owner for name in needs):
            continue
        mine = sorted({owner[name] for name in needs if name in owner})
        group = mine[0] if mine else place
        members = [*(one for key in mine for one in groups.pop(key)), place]
        groups[group] = members
        owner.update((name, group) for one in members for name in nodes[one].output if name)
    return [sorted(members) for _, members in sorted(groups.items())]


def make_subgraph(
    nodes: Sequence[NodeProto], values: Values, outside: Collection[str], reasons: dict[str, str]
) -> Subgraph:
    """Make a subgraph of some nodes in order, with the names that are read `outside` of it as outputs.

    `reasons` says why a conv among them is not a module, by its first output.
    """
    made = {name for node in nodes for name in node.output if name}
    needs = dict.fromkeys(name for node in nodes for name in proto.reads(node) if name not in made)
    graph = GraphProto(name="subgraph")
    graph.node.extend(nodes)
    stored = {name: array for name in needs if (array := values.array(name)) is not None}
    graph.input.extend(ValueInfoProto(name=name, type=_type_of(name, values)) for name in needs if name not in stored)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items())
    outputs = [name for node in nodes for name in node.output if name in outside]
    graph.output.extend(values.declared(name) for name in outputs)
    graph.value_info.extend(values.declared(name) for name in sorted(made.difference(outputs)))
    source = values.source.model
    model = ModelProto(ir_version=max(4, source.ir_version), graph=graph)
    model.opset_import.extend(source.opset_import)
    model.functions.extend(source.functions)
    looked_at = {name for node in nodes if node.op_type not in ("Shape", "Size") for name in proto.reads(node)}
    floats = [array for array in stored.values() if array.dtype.kind == "f"]
    return Subgraph(
        LazySession(model, outputs),
        operators=tuple(dict.fromkeys(str(node.op_type) for node in nodes)),
        macs=sum(_macs(node, values) for node in nodes),
        params=sum(array.size for array in floats),
        weight_bytes=sum(array.nbytes for array in floats),
        convs=hidden_convs(nodes, values, reasons),
        cuts=tuple(info.name in looked_at for info in graph.input),
    )


def _type_of(name: str, values: Values) -> TypeProto:
    """Return the type of a value that goes into a subgraph, with how many axes it has and not how long they are."""
    declared = next((info.type for info in values.graph.input if info.name == name), None)
    kind = TypeProto()
    kind.CopyFrom(_type_in_words(values.types[name]) if declared is None else declared)
    shape = values.shape(name)
    if kind.HasField("tensor_type"):
        kind.tensor_type.ClearField("shape")
        if shape is not None:
            kind.tensor_type.shape.SetInParent()
            for _ in shape:
                kind.tensor_type.shape.dim.add()
    return kind


def _type_in_words(words: str) -> TypeProto:
    """Return the type that the runtime calls by a word such as `seq(tensor(float))`."""
    kind, _, inner = words.removesuffix(")").partition("(")
    if kind == "tensor" and inner in _ELEMENTS:
        return helper.make_tensor_type_proto(_ELEMENTS[inner], None)
    if kind == "seq":
        return helper.make_sequence_type_proto(_type_in_words(inner))
    if kind == "optional":
        return helper.make_optional_type_proto(_type_in_words(inner))
    raise ValueError(f"{words} is not a type that can go from one subgraph to another")


def _macs(node: NodeProto, values: Values) -> int:
    if proto.has_macs(node):
        return proto.macs_of(node, values.shapes([*node.input, *node.output])) or 0
    if node.op_type not in ("LSTM", "GRU", "RNN"):
        return 0
    x, *weights = (values.shape(name) for name in node.input[:3])  # two products in every step: of input and state
    if x is None or any(weight is None for weight in weights):
        return 0
    return x[0] * x[1] * sum(int(np.prod(weight)) for weight in weights if weight is not None)
