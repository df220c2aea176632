"""From a file and an example to a network: every node translated and compared, the rest put into pieces."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, helper
from torch import nn

from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.convs import ConvParts, conv_key, conv_parts, sharing
from convsurgeon.onnxnet.engine import Array, to_torch
from convsurgeon.onnxnet.naming import Names, conv_name, path_of
from convsurgeon.onnxnet.network import PLUS, Entry, OnnxNetwork, Owner, Port, Step, fingerprint
from convsurgeon.onnxnet.operators.op import Op, View
from convsurgeon.onnxnet.operators.shapes import stored
from convsurgeon.onnxnet.rules import close, places, ruled
from convsurgeon.onnxnet.source_file import Source
from convsurgeon.onnxnet.subgraph import grouped, piece_of
from convsurgeon.onnxnet.values import Values, reads

_DIFFERENT = "torch computes something else than onnxruntime here"


@dataclass(frozen=True)
class Translated:
    """A node in torch: modules in a row, each with the values that go in and come out."""

    steps: tuple[Step, ...]
    modules: dict[str, nn.Module] = field(default_factory=dict)


def build(source: Source, ports: tuple[Port, ...], feed: Mapping[str, Array]) -> OnnxNetwork:
    """The network, as it runs on the example.

    Args:
        source: the file.
        ports: its inputs.
        feed: the example, in the file's types.

    Raises:
        CaptureError: onnxruntime does not run the file on the example.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that are tried and thrown away
        return _Builder(source, ports, Values(source, feed)).network()


class _Builder:
    """One network in the making."""

    def __init__(self, source: Source, ports: tuple[Port, ...], values: Values) -> None:
        self.source, self.ports, self.values = source, ports, values
        self.graph = source.model.graph
        self.outputs = [info.name for info in self.graph.output]
        self.names = Names(OnnxNetwork)
        self.shared = sharing(self.graph)
        self.counts = proto.uses(self.graph)
        self.makers = proto.producers(self.graph)
        self.convs: dict[tuple[str, ...], str] = {}
        self.owners: dict[str, Owner] = {}
        self.reasons: dict[str, str] = {}
        self.modules: dict[str, nn.Module] = {}
        self.nodes = [node for node in self.graph.node if not self._folded(node)]
        self.readers: dict[str, set[str]] = {}
        for node in self.nodes:
            for name in reads(node):
                self.readers.setdefault(name, set()).add(_key(node))

    def _folded(self, node: NodeProto) -> bool:
        """Whether what a node makes is constant, and nobody else's business."""
        names = [name for name in node.output if name]
        return all(name in self.values.constant for name in names)

    def network(self) -> OnnxNetwork:
        paths = {conv_key(node): "" for node in self.nodes if node.op_type == "Conv"}
        for node in self.nodes:  # convs have the first choice of names
            if node.op_type == "Conv" and not paths[conv_key(node)]:
                paths[conv_key(node)] = self.names.claim(conv_name(node, self.shared[node.input[1]] > 1))
        self.paths = paths
        gated = self._gates()
        made = [self._translated(node, gated) for node in self.nodes]
        steps: Sequence[Step] = [*self._entries(), *self._ordered(made)]
        steps = _dropping(steps, self.outputs)
        half = any(port.half for port in self.ports) or self.values.half
        return OnnxNetwork(self.source, self.ports, tuple(self.outputs), steps, self.owners, self.modules, half)

    def _entries(self) -> list[Step]:
        """Casts of inputs, and constants that are outputs."""
        found = []
        for port in self.ports:
            if port.half or port.dtype != torch.float32:
                path = self.names.claim(f"{port.name}.entry")
                self.modules[path] = Entry(port.dtype, port.half)
                found.append(Step(path, (port.name,), (port.name,)))
        for name in self.outputs:
            array = self.values.array(name)
            if array is not None:
                path = self.names.claim(f"{name}.constant")
                self.modules[path] = Op(stored, {}, {0: to_torch(array)})
                found.append(Step(path, (), (name,)))
        return found

    # Translation.

    def _gates(self) -> dict[str, NodeProto]:
        """Sigmoids that one product with their own input reads: together they are SiLU, or Hardswish."""
        found = {}
        for node in self.nodes:
            if node.op_type != "Mul" or len(node.input) != 2:
                continue
            for x, gate in (tuple(node.input), tuple(reversed(node.input))):
                maker = self.makers.get(gate)
                if maker is None or self.counts[gate] != 1 or maker.input[:1] != [x]:
                    continue
                if self._gated(maker, x, node.output[0]):
                    found[node.output[0]] = maker
        return found

    def _gated(self, maker: NodeProto, x: str, product: str) -> bool:
        """Whether a gate and its product are what torch has one module for."""
        if not (maker.op_type == "Sigmoid" or _is_hard(maker)) or not all(
            map(self._floating, (product, maker.output[0]))
        ):
            return False
        return close(_gate(maker)(to_torch(self.values.of(x))), self.values.of(product))

    def _translated(self, node: NodeProto, gated: dict[str, NodeProto]) -> Translated | None:
        """A node in torch, if it has a translation that computes the same on the example; empty if another does it."""
        own = [name for name in node.output if name]
        if node.domain not in ("", "ai.onnx") or not own or not all(map(self._floating, own)):
            return None
        if any(own[0] == maker.output[0] for maker in gated.values()):
            return Translated(())
        if own[0] in gated:
            maker = gated[own[0]]
            return self._checked(node, [(_gate(maker), tuple(maker.input[:1]), tuple(own))])
        view = View(node, self.values, self.source.opset)
        if node.op_type == "Conv":
            return self._conv(view)
        if node.op_type == "Add" and not any(name in self.values.constant for name in node.input):
            return Translated((Step(PLUS, tuple(node.input), tuple(own)),)) if self._sums(node) else None
        module = ruled(view)
        return None if module is None else self._checked(node, [(module, tuple(places(node, module)), tuple(own))])

    def _floating(self, name: str) -> bool:
        value = self.values.seen.get(name)
        return isinstance(value, np.ndarray) and value.dtype in (np.float16, np.float32, np.float64)

    def _sums(self, node: NodeProto) -> bool:
        one, two = (to_torch(self.values.of(name)) for name in node.input)
        return close(one + two, self.values.of(node.output[0]))

    def _conv(self, view: View) -> Translated | None:
        node, parts = view.node, conv_parts(view)
        if isinstance(parts, str):
            self.reasons[node.output[0]] = parts
            return None
        path = self.paths[conv_key(node)]
        again = path in self.owners
        made = self._checked(node, _in_a_row(node, parts), "" if again else path)
        if made is None:
            self.reasons[node.output[0]] = _DIFFERENT
            return None
        if again:  # the very same conv once more
            made = Translated((*made.steps[:-1], dataclasses.replace(made.steps[-1], target=path)), made.modules)
        self._own(path, node, parts)
        return made

    def _own(self, path: str, node: NodeProto, parts: ConvParts) -> None:
        weight, shape = self.values.array(node.input[1]), self.values.shape(node.input[0])
        assert weight is not None
        assert shape is not None
        open_sizes = any(axis for port in self.ports for axis, _ in port.open)
        padding = None if parts.before is None else parts.before.padding
        known = self.owners.get(path) or Owner(
            (), str(weight.dtype), fingerprint(parts.conv), padding, open_sizes=open_sizes
        )
        outputs, sizes = (*known.outputs, node.output[0]), (*known.sizes, shape[2:])
        self.owners[path] = dataclasses.replace(known, outputs=outputs, sizes=sizes)

    def _checked(
        self, node: NodeProto, row: Sequence[tuple[nn.Module, tuple[str, ...], tuple[str, ...]]], path: str = ""
    ) -> Translated | None:
        """Modules in a row, if they give on the example what the runtime gave; the last may have a path already."""
        values: dict[str, Any] = {name: to_torch(self.values.of(name)) for name in row[0][1]}
        try:
            for module, inputs, outputs in row:
                made = module.eval()(*(values[name] for name in inputs))
                values.update(zip(outputs, made if isinstance(made, tuple) else (made,), strict=True))
        except Exception:  # a shape, a type or a setting that torch does not take
            return None
        if not all(close(values[name], self.values.of(name), node.op_type) for name in node.output if name):
            return None
        wanted = path_of(node.name) if node.name.startswith("/") else node.name
        steps, modules = [], {}
        for place, (module, inputs, outputs) in enumerate(row):
            last = place == len(row) - 1
            own = path if last and path else self.names.claim(f"{wanted or node.output[0]}.{node.op_type.lower()}")
            modules[own] = module
            steps.append(Step(own, inputs, outputs))
        return Translated(tuple(steps), modules)

    # Order.

    def _ordered(self, made: Sequence[Translated | None]) -> list[Step]:
        """Everything that is translated and can run, then everything else that can, and so on."""
        ready = {port.name for port in self.ports} | set(self.values.constant) | {""}
        left, steps = list(zip(self.nodes, made, strict=True)), list[Step]()
        while left:
            before = len(left)
            left = self._run_translated(left, ready, steps)
            left = self._run_pieces(left, ready, steps)
            if len(left) == before:
                raise ValueError("a graph that is not in order")  # which onnx's checker refuses
        return steps

    def _run_translated(self, left: list[Any], ready: set[str], steps: list[Step]) -> list[Any]:
        later = []
        for node, one in left:
            if one is None or not ready.issuperset(reads(node)):
                later.append((node, one))
                continue
            called = {step.target for step in one.steps}
            self.modules.update((path, module) for path, module in one.modules.items() if path in called)
            steps.extend(one.steps)
            ready.update(node.output)
        return later

    def _run_pieces(self, left: list[Any], ready: set[str], steps: list[Step]) -> list[Any]:
        others = [place for place, (_, one) in enumerate(left) if one is None]
        nodes = [left[place][0] for place in others]
        done: set[int] = set()
        for members in grouped(nodes, ready):
            inside = {others[place] for place in members}
            own = [nodes[place] for place in members]
            keys = {_key(node) for node in own}
            outside = set(self.outputs) | {name for name, who in self.readers.items() if not who <= keys}
            piece = piece_of(own, self.values, outside, self.reasons)
            done |= inside
            ready.update(name for node in own for name in node.output)
            if not piece.runner.outputs:  # nobody reads it
                continue
            path = self.names.claim("piece")
            self.modules[path] = piece
            inputs = tuple(name for name, _ in piece.runner.inputs)
            steps.append(Step(path, inputs, piece.runner.outputs))
        return [one for place, one in enumerate(left) if place not in done]


def _key(node: NodeProto) -> str:
    """What tells a node from others: the first value that it makes."""
    return next((name for name in node.output if name), "")


def _gate(maker: NodeProto) -> nn.Module:
    return nn.SiLU() if maker.op_type == "Sigmoid" else nn.Hardswish()


def _in_a_row(node: NodeProto, parts: ConvParts) -> list[tuple[nn.Module, tuple[str, ...], tuple[str, ...]]]:
    source, target = node.input[0], node.output[0]
    if parts.before is None:
        return [(parts.conv, (source,), (target,))]
    padded = f"{target} padded"
    return [(parts.before, (source,), (padded,)), (parts.conv, (padded,), (target,))]


def _is_hard(node: NodeProto) -> bool:
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    slope, middle = values.get("alpha", 0.2), values.get("beta", 0.5)
    return node.op_type == "HardSigmoid" and abs(slope - 1 / 6) < 1e-6 and middle == 0.5


def _dropping(steps: Sequence[Step], outputs: Sequence[str]) -> tuple[Step, ...]:
    """Every step with the values that nobody needs after it."""
    last = {name: place for place, step in enumerate(steps) for name in (*step.outputs, *step.inputs)}
    drops: dict[int, list[str]] = {}
    for name, place in last.items():
        if name not in outputs:
            drops.setdefault(place, []).append(name)
    return tuple(dataclasses.replace(step, drops=tuple(drops.get(place, ()))) for place, step in enumerate(steps))
