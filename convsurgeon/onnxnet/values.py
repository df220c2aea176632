"""What is known of every value of a file's graph: what it was on the example, and whether it is always that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, numpy_helper

from convsurgeon.base.errors import CaptureError
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.engine import Array, run_once
from convsurgeon.onnxnet.source_file import Source

_CHANCE = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")

_HALVES = ("tensor(float16)", "tensor(bfloat16)")


class Values:
    """The values of the outermost graph, by name.

    Args:
        source: the file.
        feed: arrays for its inputs.

    Raises:
        CaptureError: onnxruntime does not run it on them.
    """

    def __init__(self, source: Source, feed: Mapping[str, Array]) -> None:
        self.source, self.graph = source, source.model.graph
        self._tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self._declared = proto.element_types(self.graph)
        self._arrays: dict[str, Array] = {}
        self.seen: dict[str, Any] = dict(feed)
        self.types: dict[str, str] = {}
        self._look(feed)
        self.constant = self._constants()

    def _look(self, feed: Mapping[str, Array]) -> None:
        """Runs the whole graph once, with every value an output."""
        probe = ModelProto()
        probe.CopyFrom(self.source.model)
        made = [name for node in self.graph.node for name in node.output if name]
        outputs = [name for name in dict.fromkeys(made) if name not in self._tensors]
        del probe.graph.output[:]
        probe.graph.output.extend(self.declared(name) for name in outputs)
        del probe.graph.value_info[:]
        stored = set(self._tensors)
        inputs = [info for info in self.graph.input if info.name not in stored]
        del probe.graph.input[:]
        probe.graph.input.extend(inputs)
        if probe.ir_version < 4:  # in which weights had to be inputs, too
            probe.ir_version = 4
        try:
            found, self.types = run_once(probe, outputs, feed)
        except Exception as error:  # the runtime's exceptions have no common base but Exception
            shapes = ", ".join("x".join(map(str, array.shape)) for array in feed.values())
            words = " ".join(str(error).split())
            raise CaptureError(
                f"{self.source.path}: onnxruntime does not run it on an input of shape {shapes} ({words[:300]}); "
                "pass an example that it runs on"
            ) from error
        self.seen.update(zip(outputs, found, strict=True))

    def declared(self, name: str) -> ValueInfoProto:
        """A value with the type that the file says it has, if it says so; sizes are found out."""
        found, kind = ValueInfoProto(name=name), self._declared.get(name)
        if kind:
            found.type.tensor_type.elem_type = kind
        return found

    def _constants(self) -> frozenset[str]:
        """Names of the values that do not depend on the inputs."""
        known = set(self._tensors)
        outputs = {output.name for output in self.graph.output}
        for node in self.graph.node:
            inside = any(item.HasField("g") or item.graphs for item in node.attribute)
            reads = [name for name in node.input if name]
            fixed = all(name in known for name in reads) and not inside and node.op_type not in _CHANCE
            if fixed and not outputs.intersection(node.output) and self._plain(node.output):
                known.update(name for name in node.output if name)
        return frozenset(known)

    def _plain(self, names: Sequence[str]) -> bool:
        return all(isinstance(self.seen.get(name), np.ndarray) for name in names if name)

    @property
    def half(self) -> bool:
        """Whether a value that depends on the inputs is in half precision."""
        return any(kind in _HALVES and name not in self.constant for name, kind in self.types.items())

    def array(self, name: str) -> Array | None:
        """A constant's value; None for all others, and for what is not there."""
        if not name or name not in self.constant:
            return None
        if name not in self._arrays:
            stored = self._tensors.get(name)
            self._arrays[name] = self.seen[name] if stored is None else np.asarray(numpy_helper.to_array(stored))
        return self._arrays[name]

    def of(self, name: str) -> Any:
        """What a value was on the example."""
        return self.array(name) if name in self.constant else self.seen[name]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor on the example."""
        value = self.of(name) if name in self.constant or name in self.seen else None
        return tuple(value.shape) if isinstance(value, np.ndarray) else None

    def shapes(self, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Of those that are tensors."""
        pairs = ((name, self.shape(name)) for name in names if name)
        return {name: shape for name, shape in pairs if shape is not None}


def reads(node: NodeProto) -> list[str]:
    """Names that a node reads, those that graphs inside it read from outside included; each once, in order."""
    found = dict.fromkeys(name for name in node.input if name)
    for item in node.attribute:
        for inner in _graphs(item):
            found.update(dict.fromkeys(_captured(inner)))
    return list(found)


def _graphs(item: AttributeProto) -> list[GraphProto]:
    return [*item.graphs, *([item.g] if item.HasField("g") else [])]


def _captured(graph: GraphProto) -> list[str]:
    """What a graph inside a node takes from outside."""
    own = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {tensor.values.name for tensor in graph.sparse_initializer}
    found: dict[str, None] = {}
    for node in graph.node:
        found.update((name, None) for name in reads(node) if name not in own)
        own.update(node.output)
    found.update((info.name, None) for info in graph.output if info.name not in own)
    return list(found)


def attribute(node: NodeProto, name: str) -> AttributeProto | None:
    """A node's attribute, None where it has none of that name."""
    return next((item for item in node.attribute if item.name == name), None)
