"""Build the network of a file: every node translated and compared on the example, the rest put into subgraphs."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, nn

from convsurgeon.base.arrays import Array
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.convs import CONVS, conv_in_torch, conv_key, conv_name, convs_per_weight, free_path, path_of
from convsurgeon.onnxnet.modules import FileInput, Operator, to_torch
from convsurgeon.onnxnet.network import PLUS, RESERVED, FileConv, ModuleCall, OnnxNetwork, weight_digest
from convsurgeon.onnxnet.operators import elementwise, shapes, windows
from convsurgeon.onnxnet.operators.node import NodeView, Translator
from convsurgeon.onnxnet.source_file import SourceFile
from convsurgeon.onnxnet.subgraph import group_nodes, make_subgraph
from convsurgeon.onnxnet.values import Values

TRANSLATORS: dict[str, Translator] = shapes.TRANSLATORS | windows.TRANSLATORS | elementwise.TRANSLATORS

_BOUNDED = ("Sigmoid", "HardSigmoid", "Tanh", "Softmax")
"""Operators that the runtime approximates to so much of 1, however small all of their values are."""

_Calls = list[tuple[ModuleCall, nn.Module | None]]
"""A node in torch: calls in a row, each with its module where no other call brings that."""

_Left = list[tuple[NodeProto, _Calls | None]]


def build_network(source: SourceFile, inputs: tuple[FileInput, ...], feed: Mapping[str, Array]) -> OnnxNetwork:
    """Build the network of a file, as it runs on the example: `feed`, in the file's types."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that are tried and thrown away
        return _Builder(source, inputs, Values(source, feed)).build()


class _Builder:
    def __init__(self, source: SourceFile, inputs: tuple[FileInput, ...], values: Values) -> None:
        self.source, self.inputs, self.values = source, inputs, values
        graph = source.model.graph
        self.outputs = [info.name for info in graph.output]
        self.taken: dict[str, bool] = {}
        self.convs: dict[str, FileConv] = {}
        self.reasons: dict[str, str] = {}
        self.modules: dict[str, nn.Module] = {}
        self.nodes = [node for node in graph.node if not values.constant.issuperset(filter(None, node.output))]
        self.conv_paths: dict[tuple[str, ...], str] = {}
        shared = convs_per_weight(graph)
        for node in self.nodes:  # convs have the first choice of names
            if node.op_type in CONVS and conv_key(node) not in self.conv_paths:
                self.conv_paths[conv_key(node)] = self._claim(conv_name(node, shared[node.input[1]] > 1))
        self.gates = self._find_gates()

    def _claim(self, wanted: str) -> str:
        return free_path(wanted, self.taken, RESERVED)

    def build(self) -> OnnxNetwork:
        """Translate all nodes, and put them in an order in which they can run."""
        calls = []
        for one in self.inputs:
            if one.half or one.dtype != torch.float32:
                path = self._claim(f"{one.name}.entry")
                self.modules[path] = Operator(shapes.cast, {"dtype": one.dtype, "half": one.half})
                calls.append(ModuleCall(path, (one.name,), (one.name,)))
        for name in self.outputs:
            if (array := self.values.array(name)) is not None:
                path = self._claim(f"{name}.constant")
                self.modules[path] = Operator(shapes.constant, {}, {0: to_torch(array)})
                calls.append(ModuleCall(path, (), (name,)))
        calls += self._order([(node, self._translate(node)) for node in self.nodes])
        return OnnxNetwork(
            self.source,
            inputs=self.inputs,
            outputs=tuple(self.outputs),
            calls=_dropping(calls, self.outputs),
            convs=self.convs,
            modules=self.modules,
            half=any(one.half for one in self.inputs) or self.values.half,
        )

    def _find_gates(self) -> dict[str, tuple[NodeProto, nn.Module]]:
        """Find sigmoids that one product with their own input reads, by its output: together they are one module."""
        readers = proto.uses(self.source.model.graph)
        makers = proto.producers(self.source.model.graph)
        found = {}
        for node in self.nodes:
            if node.op_type != "Mul" or len(node.input) != 2:
                continue
            for x, gate in (tuple(node.input), tuple(reversed(node.input))):
                maker = makers.get(gate)
                if maker is None or readers[gate] != 1 or maker.input[:1] != [x]:
                    continue
                module, ends = _gate_module(maker), (node.output[0], maker.output[0])
                if module is None or not all(map(self.values.is_float, ends)):
                    continue
                if is_close(module(to_torch(self.values.on_example(x))), self.values.on_example(ends[0])):
                    found[ends[0]] = maker, module
        return found

    def _translate(self, node: NodeProto) -> _Calls | None:
        """Translate a node, if what torch computes is the same on the example; to no calls if another does its work."""
        own = tuple(name for name in node.output if name)
        if node.domain not in ("", "ai.onnx") or not own or not all(map(self.values.is_float, own)):
            return None
        if any(own[0] == maker.output[0] for maker, _ in self.gates.values()):
            return []
        if own[0] in self.gates:
            maker, gate = self.gates[own[0]]
            return self._checked(node, [(gate, tuple(maker.input[:1]), own)])
        view = NodeView(node, self.values, self.source.opset)
        if node.op_type in CONVS:
            return self._translate_conv(view)
        if node.op_type == "Add" and not self.values.constant.intersection(node.input):
            one, two = (to_torch(self.values.on_example(name)) for name in node.input)
            same = is_close(one + two, self.values.on_example(own[0]))
            return [(ModuleCall(PLUS, tuple(node.input), own), None)] if same else None
        module = _module_of(view)
        if module is None:
            return None
        fixed = module.fixed if isinstance(module, Operator) else range(1, len(node.input))
        inputs = tuple(name for place, name in enumerate(node.input) if name and place not in fixed)
        return self._checked(node, [(module, inputs, own)])

    def _translate_conv(self, view: NodeView) -> _Calls | None:
        node, made = view.node, conv_in_torch(view, any(axis for one in self.inputs for axis, _ in one.open))
        source, target = node.input[0], node.output[0]
        if isinstance(made, str):
            self.reasons[target] = made
            return None
        conv, padding = made
        path = self.conv_paths[conv_key(node)]
        row = [(conv, (source,), (target,))]
        if padding is not None:
            padded = (f"{target} padded",)
            row = [(Operator(padding.add), (source,), padded), (conv, padded, (target,))]
        calls = self._checked(node, row, path)
        if calls is None:
            self.reasons[target] = "torch computes something else than onnxruntime here"
            return None
        if path in self.convs:  # the very same conv once more
            calls[-1] = calls[-1][0], None
        else:
            dtype = str(self.values.on_example(node.input[1]).dtype)
            self.convs[path] = FileConv({}, dtype, weight_digest(conv), padding)
        self.convs[path].sizes[target] = self.values.on_example(source).shape[2:]
        return calls

    def _checked(
        self, node: NodeProto, row: Sequence[tuple[nn.Module, tuple[str, ...], tuple[str, ...]]], path: str = ""
    ) -> _Calls | None:
        """Return calls of modules with inputs and outputs, if they give what the runtime gave; `path` is the last's."""
        values: dict[str, Any] = {name: to_torch(self.values.on_example(name)) for name in row[0][1]}
        try:
            for module, inputs, outputs in row:
                made = module.eval()(*(values[name] for name in inputs))
                values.update(zip(outputs, made if isinstance(made, tuple) else (made,), strict=True))
        except Exception as error:  # a shape, a type or a setting that torch does not take
            logging.getLogger(__name__).debug("%s %s runs in onnxruntime: %s", node.op_type, node.name, error)
            return None
        own = [name for name in node.output if name]
        if not all(is_close(values[name], self.values.on_example(name), node.op_type) for name in own):
            return None
        wanted = (path_of(node.name) if node.name.startswith("/") else node.name) or node.output[0]
        calls: _Calls = []
        for module, inputs, outputs in row:
            last = outputs == row[-1][2]
            free = path if last and path else self._claim(f"{wanted}.{node.op_type.lower()}")
            calls.append((ModuleCall(free, inputs, outputs), module))
        return calls

    def _order(self, left: _Left) -> list[ModuleCall]:
        """Run everything that is translated and can run, then everything else that can, and so on."""
        ready = {one.name for one in self.inputs} | set(self.values.constant) | {""}
        readers: dict[str, set[str]] = {}
        for node in self.nodes:
            for name in proto.reads(node):
                readers.setdefault(name, set()).add(_key(node))
        calls: list[ModuleCall] = []
        while left:
            before = len(left)
            left = self._run_translated(left, ready, calls)
            left = self._run_subgraphs(left, ready, calls, readers)
            if len(left) == before:
                raise ValueError("a graph that is not in order")  # which onnx's checker refuses
        return calls

    def _run_translated(self, left: _Left, ready: set[str], calls: list[ModuleCall]) -> _Left:
        later = []
        for node, made in left:
            if made is None or not ready.issuperset(proto.reads(node)):
                later.append((node, made))
                continue
            self.modules.update((call.target, module) for call, module in made if module is not None)
            calls.extend(call for call, _ in made)
            ready.update(node.output)
        return later

    def _run_subgraphs(
        self, left: _Left, ready: set[str], calls: list[ModuleCall], readers: Mapping[str, set[str]]
    ) -> _Left:
        nodes = [node for node, made in left if made is None]
        done: set[str] = set()
        for members in group_nodes(nodes, ready):
            own = [nodes[place] for place in members]
            keys = {_key(node) for node in own}
            outside = set(self.outputs) | {name for name, who in readers.items() if not who <= keys}
            made = make_subgraph(own, self.values, outside, self.reasons)
            done |= keys
            ready.update(name for node in own for name in node.output)
            if made.session.outputs:  # somebody reads it
                path = self._claim("subgraph")
                self.modules[path] = made
                inputs = tuple(name for name, _ in made.session.inputs)
                calls.append(ModuleCall(path, inputs, made.session.outputs))
        return [(node, made) for node, made in left if _key(node) not in done]


def _key(node: NodeProto) -> str:
    """Return what tells a node from others: the first value that it makes."""
    return next((name for name in node.output if name), "")


def _gate_module(maker: NodeProto) -> nn.Module | None:
    """Return the module that a gate and its product with the gate's input are; None where torch has none."""
    if maker.op_type == "Sigmoid":
        return nn.SiLU()
    slope, middle = proto.number_attribute(maker, "alpha", 0.2), proto.number_attribute(maker, "beta", 0.5)
    return nn.Hardswish() if maker.op_type == "HardSigmoid" and abs(slope - 1 / 6) < 1e-6 and middle == 0.5 else None


def _module_of(view: NodeView) -> nn.Module | None:
    """Return the module that stands for a node; None where there is no translator, or it knows no module."""
    translate = TRANSLATORS.get(view.node.op_type)
    try:
        return None if translate is None else translate(view)
    except Exception as error:  # an attribute that is missing, or of another kind
        logging.getLogger(__name__).debug("%s %s runs in onnxruntime: %s", view.node.op_type, view.node.name, error)
        return None


def _dropping(calls: Sequence[ModuleCall], outputs: Sequence[str]) -> tuple[ModuleCall, ...]:
    """Return every call with the values that nobody needs after it."""
    last = {name: place for place, call in enumerate(calls) for name in (*call.outputs, *call.inputs)}
    drops: dict[int, list[str]] = {}
    for name, place in last.items():
        if name not in outputs:
            drops.setdefault(place, []).append(name)
    return tuple(dataclasses.replace(call, drops=tuple(drops.get(place, ()))) for place, call in enumerate(calls))


def is_close(found: Any, wanted: Any, operator: str = "") -> bool:
    """Return whether a value of torch is the runtime's, to 1e-5; half precision as far as it goes."""
    reference = to_torch(wanted) if isinstance(wanted, np.ndarray) else None
    if not isinstance(found, Tensor) or not isinstance(reference, Tensor):
        return False
    if found.shape != reference.shape or found.dtype != reference.dtype:
        return False
    finite = reference.isfinite()
    if not torch.equal(found.isfinite(), finite):
        return False
    one, two = found[finite].double(), reference[finite].double()
    if not one.numel():
        return True
    scale = max(float(two.abs().max()), 0.1 if operator in _BOUNDED else 1e-30)
    return float((one - two).abs().max()) <= (4e-3 if wanted.dtype == np.float16 else 1e-5) * scale
