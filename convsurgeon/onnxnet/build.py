"""Build the network of a file: every node translated and compared on the example, the rest put into subgraphs."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, nn

from convsurgeon.base.arrays import Array
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.convs import ConvParts, ModulePaths, conv_key, conv_name, conv_parts, convs_per_weight, path_of
from convsurgeon.onnxnet.modules import FileInput, InputCast, Operator, to_torch
from convsurgeon.onnxnet.network import PLUS, RESERVED, FileConv, ModuleCall, OnnxNetwork, weight_digest
from convsurgeon.onnxnet.operators import elementwise, shapes, windows
from convsurgeon.onnxnet.operators.node import NodeView, Rule
from convsurgeon.onnxnet.source_file import SourceFile
from convsurgeon.onnxnet.subgraph import group_nodes, make_subgraph
from convsurgeon.onnxnet.values import Values

RULES: dict[str, Rule] = shapes.RULES | windows.RULES | elementwise.RULES

_BOUNDED = ("Sigmoid", "HardSigmoid", "Tanh", "Softmax")
"""Operators that the runtime approximates to so much of 1, however small all of their values are."""

_DIFFERENT = "torch computes something else than onnxruntime here"


@dataclass(frozen=True)
class _Translation:
    """A node in torch: calls of modules in a row."""

    calls: tuple[ModuleCall, ...]
    modules: dict[str, nn.Module] = field(default_factory=dict)


_Row = Sequence[tuple[nn.Module, tuple[str, ...], tuple[str, ...]]]
"""Modules in a row, each with the values that go in and come out."""

_Left = list[tuple[NodeProto, _Translation | None]]


def build_network(source: SourceFile, inputs: tuple[FileInput, ...], feed: Mapping[str, Array]) -> OnnxNetwork:
    """Build the network of a file, as it runs on the example.

    Args:
        source: the file.
        inputs: of it.
        feed: the example, in the file's types.

    Raises:
        CaptureError: onnxruntime does not run the file on the example.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that are tried and thrown away
        return _Builder(source, inputs, Values(source, feed)).build()


class _Builder:
    """One network in the making."""

    def __init__(self, source: SourceFile, inputs: tuple[FileInput, ...], values: Values) -> None:
        self.source, self.inputs, self.values = source, inputs, values
        graph = source.model.graph
        self.outputs = [info.name for info in graph.output]
        self.paths = ModulePaths(RESERVED)
        self.convs: dict[str, FileConv] = {}
        self.reasons: dict[str, str] = {}
        self.modules: dict[str, nn.Module] = {}
        self.nodes = [node for node in graph.node if not values.can_be_folded(node)]
        self.conv_paths: dict[tuple[str, ...], str] = {}
        shared = convs_per_weight(graph)
        for node in self.nodes:  # convs have the first choice of names
            if node.op_type == "Conv" and conv_key(node) not in self.conv_paths:
                self.conv_paths[conv_key(node)] = self.paths.claim(conv_name(node, shared[node.input[1]] > 1))
        self.gates = self._find_gates()

    def build(self) -> OnnxNetwork:
        """Translate all nodes, and put them in an order in which they can run."""
        translations = [self._translate(node) for node in self.nodes]
        calls = [*self._calls_of_ends(), *self._order(list(zip(self.nodes, translations, strict=True)))]
        return OnnxNetwork(
            self.source,
            inputs=self.inputs,
            outputs=tuple(self.outputs),
            calls=_dropping(calls, self.outputs),
            convs=self.convs,
            modules=self.modules,
            half=any(one.half for one in self.inputs) or self.values.half,
        )

    def _calls_of_ends(self) -> list[ModuleCall]:
        """Make the casts of inputs, and constants that are outputs."""
        found = []
        for one in self.inputs:
            if one.half or one.dtype != torch.float32:
                path = self.paths.claim(f"{one.name}.entry")
                self.modules[path] = InputCast(one.dtype, one.half)
                found.append(ModuleCall(path, (one.name,), (one.name,)))
        for name in self.outputs:
            if (array := self.values.array(name)) is not None:
                path = self.paths.claim(f"{name}.constant")
                self.modules[path] = Operator(shapes.constant, {}, {0: to_torch(array)})
                found.append(ModuleCall(path, (), (name,)))
        return found

    # Translation.

    def _find_gates(self) -> dict[str, NodeProto]:
        """Find sigmoids that one product with their own input reads: together they are SiLU, or Hardswish."""
        readers = proto.uses(self.source.model.graph)
        makers = proto.producers(self.source.model.graph)
        found = {}
        for node in self.nodes:
            if node.op_type != "Mul" or len(node.input) != 2:
                continue
            for x, gate in (tuple(node.input), tuple(reversed(node.input))):
                maker = makers.get(gate)
                if maker is not None and readers[gate] == 1 and maker.input[:1] == [x] and self._is_gate(maker, node):
                    found[node.output[0]] = maker
        return found

    def _is_gate(self, maker: NodeProto, product: NodeProto) -> bool:
        gate, ends = _gate_module(maker), (product.output[0], maker.output[0])
        if gate is None or not all(map(self.values.is_float, ends)):
            return False
        return is_close(gate(to_torch(self.values.on_example(maker.input[0]))), self.values.on_example(ends[0]))

    def _translate(self, node: NodeProto) -> _Translation | None:
        """Translate a node, if what torch computes is the same on the example; to no calls if another does its work."""
        own = tuple(name for name in node.output if name)
        if node.domain not in ("", "ai.onnx") or not own or not all(map(self.values.is_float, own)):
            return None
        if any(own[0] == maker.output[0] for maker in self.gates.values()):
            return _Translation(())
        if (maker := self.gates.get(own[0])) is not None:
            gate = _gate_module(maker)
            assert gate is not None
            return self._checked(node, [(gate, tuple(maker.input[:1]), own)])
        view = NodeView(node, self.values, self.source.opset)
        if node.op_type == "Conv":
            return self._translate_conv(view)
        if node.op_type == "Add" and not self.values.constant.intersection(node.input):
            one, two = (to_torch(self.values.on_example(name)) for name in node.input)
            same = is_close(one + two, self.values.on_example(own[0]))
            return _Translation((ModuleCall(PLUS, tuple(node.input), own),)) if same else None
        module = _module_of(view)
        return None if module is None else self._checked(node, [(module, _inputs_of(node, module), own)])

    def _translate_conv(self, view: NodeView) -> _Translation | None:
        node, parts = view.node, conv_parts(view)
        if isinstance(parts, str):
            self.reasons[node.output[0]] = parts
            return None
        path = self.conv_paths[conv_key(node)]
        again = path in self.convs
        made = self._checked(node, _row_of(node, parts), "" if again else path)
        if made is None:
            self.reasons[node.output[0]] = _DIFFERENT
            return None
        if again:  # the very same conv once more
            made = _Translation((*made.calls[:-1], dataclasses.replace(made.calls[-1], target=path)), made.modules)
        self._keep_conv(path, node, parts)
        return made

    def _keep_conv(self, path: str, node: NodeProto, parts: ConvParts) -> None:
        """Note what a conv is in the file; once more for every call."""
        weight, shape = self.values.array(node.input[1]), self.values.shape(node.input[0])
        assert weight is not None
        assert shape is not None
        known = self.convs.get(path) or FileConv(
            (),
            str(weight.dtype),
            weight_digest(parts.conv),
            None if parts.before is None else parts.before.padding,
            open_sizes=any(axis for one in self.inputs for axis, _ in one.open),
        )
        outputs, sizes = (*known.outputs, node.output[0]), (*known.sizes, shape[2:])
        self.convs[path] = dataclasses.replace(known, outputs=outputs, sizes=sizes)

    def _checked(self, node: NodeProto, row: _Row, path: str = "") -> _Translation | None:
        """Return modules in a row, if they give what the runtime gave; the last one may have a path already."""
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
        wanted = path_of(node.name) if node.name.startswith("/") else node.name
        calls, modules = [], {}
        for place, (module, inputs, outputs) in enumerate(row):
            last = place == len(row) - 1
            free = path if last and path else self.paths.claim(f"{wanted or node.output[0]}.{node.op_type.lower()}")
            modules[free] = module
            calls.append(ModuleCall(free, inputs, outputs))
        return _Translation(tuple(calls), modules)

    # Order.

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
            called = {call.target for call in made.calls}
            self.modules.update((path, module) for path, module in made.modules.items() if path in called)
            calls.extend(made.calls)
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
                path = self.paths.claim("subgraph")
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
    """Return the module that stands for a node; None where there is no rule, or the rule knows no module."""
    rule = RULES.get(view.node.op_type)
    try:
        return None if rule is None else rule(view)
    except Exception as error:  # an attribute that is missing, or of another kind
        logging.getLogger(__name__).debug("%s %s runs in onnxruntime: %s", view.node.op_type, view.node.name, error)
        return None


def _inputs_of(node: NodeProto, module: nn.Module) -> tuple[str, ...]:
    """Return the inputs that a module is called with: those that are not fixed."""
    if isinstance(module, Operator):
        return tuple(name for place, name in enumerate(node.input) if name and place not in module.fixed)
    return tuple(name for name in node.input[:1] if name)


def _row_of(node: NodeProto, parts: ConvParts) -> _Row:
    source, target = node.input[0], node.output[0]
    if parts.before is None:
        return [(parts.conv, (source,), (target,))]
    padded = f"{target} padded"
    return [(parts.before, (source,), (padded,)), (parts.conv, (padded,), (target,))]


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
