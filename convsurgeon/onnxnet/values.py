"""What every value of a file's graph was on the example, and whether it is always that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

from convsurgeon.base.arrays import Array
from convsurgeon.base.errors import CaptureError
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.modules import to_torch
from convsurgeon.onnxnet.session import open_session, session_options
from convsurgeon.onnxnet.source_file import SourceFile

_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
_HALVES = ("tensor(float16)", "tensor(bfloat16)")


class Values:
    """The values of the outermost graph of a file, by name, as they are for a feed."""

    def __init__(self, source: SourceFile, feed: Mapping[str, Array]) -> None:
        self.source, self.graph = source, source.model.graph
        self._tensors = proto.stored(self.graph)
        self._declared = proto.element_types(self.graph)
        self._arrays: dict[str, Array] = {}
        self.seen: dict[str, Any] = dict(feed)
        self.types: dict[str, str] = {}
        self._run(feed)
        self.constant = self._constants()

    def _run(self, feed: Mapping[str, Array]) -> None:
        """Run the whole graph once, with every value an output."""
        probe = ModelProto()
        probe.CopyFrom(self.source.model)
        made = [name for node in self.graph.node for name in node.output if name]
        outputs = [name for name in dict.fromkeys(made) if name not in self._tensors]
        del probe.graph.output[:], probe.graph.value_info[:], probe.graph.input[:]
        probe.graph.output.extend(self.declared(name) for name in outputs)
        probe.graph.input.extend(proto.free_inputs(self.graph))
        probe.ir_version = max(4, probe.ir_version)  # before, weights had to be inputs, too
        try:
            session = open_session(probe, session_options(torch.get_num_threads(), "off", spinning=False))
            found = session.run(outputs, dict(feed))
        except Exception as error:  # the runtime's exceptions share no base class but Exception
            shapes = ", ".join("x".join(map(str, array.shape)) for array in feed.values())
            raise CaptureError(
                f"{self.source.path}: onnxruntime does not run it on an input of shape {shapes} "
                f"({' '.join(str(error).split())[:300]}); pass an example that it runs on"
            ) from error
        self.types = {one.name: one.type for one in session.get_outputs()}
        self.seen.update(zip(outputs, found, strict=True))

    def declared(self, name: str) -> ValueInfoProto:
        """Return a value with the type that the file declares, if it does, and without sizes."""
        found, kind = ValueInfoProto(name=name), self._declared.get(name)
        if kind:
            found.type.tensor_type.elem_type = kind
        return found

    def _constants(self) -> frozenset[str]:
        """Return the names of the values that do not depend on the inputs."""
        known = set(self._tensors)
        outputs = {output.name for output in self.graph.output}
        for node in self.graph.node:
            made = [name for name in node.output if name]
            fixed = known.issuperset(name for name in node.input if name) and node.op_type not in _RANDOM
            plain = all(isinstance(self.seen.get(name), np.ndarray) for name in made)
            if fixed and plain and not proto.inner_graphs(node) and not outputs.intersection(made):
                known.update(made)
        return frozenset(known)

    @property
    def half(self) -> bool:
        """Whether a value that depends on the inputs is in half precision."""
        return any(kind in _HALVES and name not in self.constant for name, kind in self.types.items())

    def array(self, name: str) -> Array | None:
        """Return a constant's value; None for what is not constant, and for the empty name."""
        if not name or name not in self.constant:
            return None
        if name not in self._arrays:
            stored = self._tensors.get(name)
            self._arrays[name] = self.seen[name] if stored is None else np.asarray(numpy_helper.to_array(stored))
        return self._arrays[name]

    def tensor(self, name: str) -> Tensor | None:
        """Return a constant's value as torch has it; None for what is not constant."""
        array = self.array(name)
        return None if array is None else to_torch(array)

    def on_example(self, name: str) -> Any:
        """Return what a value was on the example."""
        return self.array(name) if name in self.constant else self.seen[name]

    def is_float(self, name: str) -> bool:
        """Return whether a value that a node makes is a floating-point tensor."""
        value = self.seen.get(name)
        return isinstance(value, np.ndarray) and value.dtype in (np.float16, np.float32, np.float64)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor on the example; None for other values."""
        value = self.on_example(name) if name in self.constant or name in self.seen else None
        return tuple(value.shape) if isinstance(value, np.ndarray) else None

    def shapes(self, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of those that are tensors."""
        pairs = ((name, self.shape(name)) for name in names if name)
        return {name: shape for name, shape in pairs if shape is not None}


def to_array(value: Tensor, kind: int) -> Array:
    """Return a tensor as an array of a type of ONNX, by its number."""
    return np.ascontiguousarray(value.detach().cpu().numpy().astype(helper.tensor_dtype_to_np_dtype(kind), copy=False))
