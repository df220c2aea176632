"""Multiply-accumulates of an ONNX file, node by node, counted from the shapes of its graph.

Convolutions and matrix products count, as in `convsurgeon.cost`; everything else counts nothing. Node by node the sums
are those of torch's formulas (see `onnxnet.macs`).

Quantised operators count like the float ones they stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto

from convsurgeon.onnx.session import bound_shape, checked
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.macs import Shapes, has_macs, macs_of


@dataclass(frozen=True)
class Work:
    """MACs of one file."""

    by_node: Mapping[str, int]
    """In the order of the graph, under the names of the nodes."""
    uncounted: tuple[str, ...]
    """Nodes that would count, but whose shapes depend on values."""

    @property
    def macs(self) -> int:
        """Of the whole file."""
        return sum(self.by_node.values())


def work_of(path: str | Path, *, batch: int = 1, sizes: Mapping[str, int] | None = None) -> Work:
    """Counts a file.

    Args:
        path: Any ONNX file.
        batch: For a symbolic first dimension.
        sizes: For other symbolic dimensions, by name; 64 for those not named.

    Raises:
        LatencyError: The file is missing, unreadable, not ONNX, or not valid.
    """
    return count(checked(Path(path)), batch, sizes or {})


def count(model: ModelProto, batch: int, sizes: Mapping[str, int]) -> Work:
    """Counts a graph; it is left as it was."""
    shapes = _shapes(model, batch, sizes)
    found: dict[str, int] = {}
    uncounted = []
    for node in model.graph.node:
        if has_macs(node):
            name = str(node.name or node.output[0])
            macs = macs_of(node, shapes)
            if macs is None:
                uncounted.append(name)
            else:
                found[name] = found.get(name, 0) + macs
    return Work(found, tuple(uncounted))


def _shapes(model: ModelProto, batch: int, sizes: Mapping[str, int]) -> Shapes:
    """Shape of every value that has one once the open dimensions of the inputs are set."""
    bound = ModelProto.FromString(model.SerializeToString())
    del bound.graph.value_info[:]
    for info in bound.graph.output:
        info.type.tensor_type.ClearField("shape")
    for info in bound.graph.input:
        dims = info.type.tensor_type.shape.dim
        given = [dim.dim_value or dim.dim_param for dim in dims]
        for dim, size in zip(dims, bound_shape(given, batch, sizes), strict=True):
            dim.dim_value = size
    bound = onnx.shape_inference.infer_shapes(bound, data_prop=True)
    known = {tensor.name: tuple(tensor.dims) for tensor in bound.graph.initializer}
    for name, shape in proto.signature((*bound.graph.input, *bound.graph.value_info, *bound.graph.output)):
        sized = [size for size in shape if isinstance(size, int) and size > 0]
        if len(sized) == len(shape):
            known.setdefault(name, tuple(sized))
    return known
