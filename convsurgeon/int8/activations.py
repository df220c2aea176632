"""Signal over error of every value that two versions of a graph share, on the same inputs.

A low SQNR may be inherited, so layers are also told by the noise they *add*: noise over signal of their output less
that of their noisiest input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto

from convsurgeon.int8.feeds import opened_sizes
from convsurgeon.onnx import graph
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import DEQUANTISED, Feed, open_session, session_options

Array = npt.NDArray[Any]
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_COMPARED = 16  # batches: enough for a figure per value, and every value of the graph is computed for each
"""What the quantiser calls a value after its rounding, behind the value's own name."""


@dataclass(frozen=True)
class LayerError:
    """What rounding did to the output of one layer."""

    name: str
    sqnr_db: float
    """Of its output, everything before it rounded too."""
    added: float
    """Noise over signal of its output less that of its noisiest input: what rounding this layer itself cost."""
    excluded: bool
    """Whether it was left in float."""


def layer_errors(
    origin: Path, model: ModelProto, draft: Path, feeds: Sequence[Feed], left: set[str]
) -> tuple[LayerError, ...]:
    """What rounding did to every conv and matrix product, in the order of the graph."""
    floats = _float_values(model)
    made = [name for name in proto.producers(model.graph) if name in floats]
    values = sqnr_by_value(origin, draft, feeds[:_COMPARED], made)
    readers = proto.readers(model.graph)
    found = []
    for node in model.graph.node:
        end = _fused_end(readers, node.output[0], values)
        if node.op_type in _LAYERS and end in values:
            before = max((_noise(values[name]) for name in node.input if name in values), default=0.0)
            found.append(LayerError(node.name, values[end], _noise(values[end]) - before, node.name in left))
    return tuple(found)


def _noise(sqnr_db: float) -> float:
    """Noise over signal."""
    return float(10 ** (-sqnr_db / 10))


def _fused_end(read: Mapping[str, Sequence[NodeProto]], value: str, values: dict[str, float]) -> str:
    """The value itself, or that of the ReLU after it where rounding happens only behind the ReLU."""
    readers = read.get(value, ())
    if value not in values and len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        return str(readers[0].output[0])
    return value


def _float_values(model: ModelProto) -> set[str]:
    types = proto.element_types(graph.infer_shapes(model).graph)
    return {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT}


def sqnr_by_value(reference: Path, changed: Path, feeds: Sequence[Feed], names: Sequence[str]) -> dict[str, float]:
    """SQNR in dB of the named values (in the order given) of a float graph in a quantised version of it.

    A value is compared after its own rounding where it has one. Values that quantisation fused away are left out.
    """
    first, second = onnx.load(reference), onnx.load(changed)
    found = _values(second)
    pairs = {name: name + DEQUANTISED if name + DEQUANTISED in found else name for name in names}
    pairs = {name: other for name, other in pairs.items() if other in found}
    energies = {name: [0.0, 0.0] for name in pairs}
    wanted, got = exposed(first, pairs), exposed(second, pairs.values())
    for feed in feeds:
        # One list per feed, not all feeds at once: a graph has hundreds of values.
        rows = zip(pairs, wanted.run(list(pairs), feed), got.run(list(pairs.values()), feed), strict=True)
        for name, exact, rounded in rows:
            add_energies(energies[name], exact, rounded)
    return {name: ratio_db(*energy) for name, energy in energies.items()}


def add_energies(energy: list[float], exact: Array, changed: Array) -> None:
    """Adds signal and error energy in float64 to a pair of sums."""
    wanted = exact.astype(np.float64)
    energy[0] += float(np.sum(wanted**2))
    energy[1] += float(np.sum((changed.astype(np.float64) - wanted) ** 2))


def ratio_db(signal: float, error: float) -> float:
    """Signal over error in dB; infinite without error, minus infinity without signal or with NaN."""
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 and math.isfinite(error) else -math.inf


def _values(model: ModelProto) -> set[str]:
    """Everything a node makes."""
    return {output for node in model.graph.node for output in node.output if output}


def exposed(model: ModelProto, names: Iterable[str]) -> ort.InferenceSession:
    """A session that also returns values from inside the graph; unoptimised, so that they are there.

    It takes images of any size that the graph's nodes do: calibration crops may be smaller than what the file is for.
    """
    model = opened_sizes(model)
    outputs = {info.name for info in model.graph.output}
    for name in sorted(set(names) - outputs):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return open_session(model, session_options(1, "off"))
