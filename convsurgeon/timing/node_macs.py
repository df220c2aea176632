"""Count the multiply-accumulates of an ONNX file, node by node, from the shapes of its graph.

Convs and matrix products count, as in `graph.cost`; everything else counts nothing. Quantised operators count like the
float ones they stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto

from convsurgeon.onnx.files import bound_shape, load_checked
from convsurgeon.onnxnet import proto


@dataclass(frozen=True)
class FileMacs:
    """MACs of one file."""

    by_node: Mapping[str, int]
    """By name of the node, in the order of the graph."""
    uncounted: tuple[str, ...]
    """Nodes that would count, but whose shapes depend on values."""

    @property
    def macs(self) -> int:
        """Of the whole file."""
        return sum(self.by_node.values())


def count_macs(path: str | Path, *, batch: int = 1, sizes: Mapping[str, int] | None = None) -> FileMacs:
    """Count the MACs of a file; symbolic dimensions take `batch`, and `sizes` by name, 64 for those not named.

    Raises:
        LatencyError: The file is missing, unreadable, not ONNX, or not valid.
    """
    model = proto.without_values(load_checked(Path(path)))
    shapes = _infer_shapes(model, batch, sizes or {})
    by_node: dict[str, int] = {}
    uncounted = []
    for node in model.graph.node:
        if proto.has_macs(node):
            name = str(node.name or node.output[0])
            macs = proto.macs_of(node, shapes)
            if macs is None:
                uncounted.append(name)
            else:
                by_node[name] = by_node.get(name, 0) + macs
    return FileMacs(by_node, tuple(uncounted))


def _infer_shapes(model: ModelProto, batch: int, sizes: Mapping[str, int]) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every value that has one once the open dimensions of the inputs are set, in place."""
    del model.graph.value_info[:]
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    for info in model.graph.input:
        dims = info.type.tensor_type.shape.dim
        given = [dim.dim_value or dim.dim_param for dim in dims]
        for dim, size in zip(dims, bound_shape(given, batch, sizes), strict=True):
            dim.dim_value = size
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for name, shape in proto.signature((*graph.input, *graph.value_info, *graph.output)):
        sized = tuple(size for size in shape if isinstance(size, int) and size > 0)
        if len(sized) == len(shape):
            known.setdefault(name, sized)
    return known
