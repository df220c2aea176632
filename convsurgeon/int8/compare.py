"""Compare an ONNX file with the one it was made from: its outputs, and what rounding did to every layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import ModelProto, TensorProto

from convsurgeon.base.arrays import Array
from convsurgeon.graph.decisions import Decisions
from convsurgeon.graph.output_error import OutputError
from convsurgeon.int8.feeds import expose_values, open_sizes
from convsurgeon.onnx import graph
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import DEQUANTISED, Feed, open_session, session_options

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_BATCHES = 16
"""Batches that layers are compared on: all values of the graph are computed for each."""


@dataclass(frozen=True)
class Agreement:
    """How near the outputs of a file are to those of its reference."""

    name: str
    sqnr_db: float
    """Signal over error of all outputs; -inf where they have other sizes, as in a detector that picks boxes."""
    top1: float | None
    """Share of rows with the same largest output; None where the output is not one row of classes per image."""
    rows: int
    """Number of images compared."""
    error: float
    """See `graph.output_error`; where the file decides, of what it decides by."""
    lost: float = 0.0
    """Share of right decisions that are lost, see `graph.decisions`."""
    overlap: float | None = None
    """Of decisions at every place of a map, intersection over union; None without maps."""


@dataclass(frozen=True)
class LayerError:
    """What rounding did to the output of one layer."""

    name: str
    sqnr_db: float
    """Signal over error of its output; everything before the layer is rounded too."""
    added: float
    """Noise over signal of its output less that of its noisiest input: what rounding this layer alone cost."""
    excluded: bool
    """Whether it was left in float."""


def measure_agreement(reference: Path, other: Path, feeds: Sequence[Feed]) -> Agreement:
    """Compare two files in the optimised runtime; images may have other sizes than the files are for."""
    energies, error, decisions, rows = np.zeros(2), OutputError(), Decisions(), 0
    for _, wanted, found in run_both(reference, other, feeds):
        if [one.shape for one in wanted] != [two.shape for two in found]:
            images = sum(len(next(iter(feed.values()))) for feed in feeds)
            return Agreement(other.name, -math.inf, None, images, math.inf)
        for one, two in zip(wanted, found, strict=True):
            energies += _energies(one, two)
        pair = [[torch.from_numpy(one.astype(np.float64)) for one in side] for side in (wanted, found)]
        error.add(*pair)
        decisions.add(*pair)
        rows += len(wanted[0]) if wanted[0].ndim else 1
    return Agreement(
        name=other.name,
        sqnr_db=_decibels(energies),
        top1=decisions.agreement,
        rows=rows,
        error=error.value,
        lost=decisions.lost,
        overlap=decisions.overlap,
    )


def run_both(reference: Path, other: Path, feeds: Sequence[Feed]) -> Iterator[tuple[Feed, list[Array], list[Array]]]:
    """Yield every feed with what both files are judged at."""
    opened = [_open(path, feeds) for path in (reference, other)]
    for feed in feeds:
        wanted, found = (session.run(names, feed) for session, names in opened)
        yield feed, wanted, found


def compare_layers(
    model: ModelProto, rounded: ModelProto, feeds: Sequence[Feed], left: Collection[str]
) -> tuple[LayerError, ...]:
    """Return what rounding did to every conv and matrix product of a float graph; the nodes in `left` stayed float."""
    values = _sqnr_of_values(model, rounded, feeds[:_BATCHES])
    readers = proto.readers(model.graph)
    layers = []
    for node in model.graph.node:
        end = node.output[0]
        after = readers.get(end, ())
        if end not in values and len(after) == 1 and after[0].op_type in ("Relu", "Clip"):
            end = after[0].output[0]  # the runtime rounds behind the ReLU only
        if node.op_type in LAYERS and end in values:
            before = max((_noise(values[name]) for name in node.input if name in values), default=0.0)
            layers.append(LayerError(node.name, values[end], _noise(values[end]) - before, node.name in left))
    return tuple(layers)


def _sqnr_of_values(model: ModelProto, rounded: ModelProto, feeds: Sequence[Feed]) -> dict[str, float]:
    """Return the SQNR in dB of every value that both graphs compute, behind its own rounding where it has one."""
    types = proto.element_types(graph.inferred(model))
    made = proto.producers(rounded.graph)
    pairs = {}
    for name in proto.producers(model.graph):
        other = name + DEQUANTISED if name + DEQUANTISED in made else name
        if types.get(name) == TensorProto.FLOAT and other in made:
            pairs[name] = other
    energies = np.zeros((len(pairs), 2))
    exact, changed = expose_values(model, pairs), expose_values(rounded, pairs.values())
    for feed in feeds:  # not all at once: a graph has hundreds of values
        wanted, found = exact.run(list(pairs), feed), changed.run(list(pairs.values()), feed)
        energies += [_energies(one, two) for one, two in zip(wanted, found, strict=True)]
    return dict(zip(pairs, map(_decibels, energies), strict=True))


def _energies(exact: Array, changed: Array) -> Array:
    """Return the energies of a signal and of its error, summed in float64."""
    wanted = exact.astype(np.float64)
    return np.array([np.sum(wanted**2), np.sum((changed.astype(np.float64) - wanted) ** 2)])


def _decibels(energies: Array) -> float:
    """Return signal over error in dB; infinite without error, minus infinity without signal or with NaN."""
    signal, error = map(float, energies)
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 and math.isfinite(error) else -math.inf


def _noise(sqnr_db: float) -> float:
    return float(10 ** (-sqnr_db / 10))


def _judged(model: ModelProto) -> list[str]:
    """Return the floating-point outputs, and the values that others are decided by."""
    types = proto.element_types(graph.inferred(model))
    made = proto.producers(model.graph)
    found: dict[str, None] = {}
    waiting = [info.name for info in reversed(model.graph.output)]
    while waiting:
        name = waiting.pop()
        if name not in made:
            continue  # an input or a constant
        if types.get(name) in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
            found[name] = None
        else:
            waiting.extend(reversed(made[name].input))
    return list(found) or [info.name for info in model.graph.output]


def _open(path: Path, feeds: Sequence[Feed]) -> tuple[ort.InferenceSession, list[str]]:
    """Open the file as it is, or with its sizes opened where the images have others; with what it is judged at."""
    model = onnx.load(path)
    names = _judged(model)
    if not {*names} <= {info.name for info in model.graph.output}:
        return expose_values(model, names), names
    shapes = dict(proto.signature(model.graph.input))
    given = [(shapes[name], value.shape) for feed in feeds for name, value in feed.items() if name in shapes]
    fits = all(
        len(wanted) == len(shape)
        and all(isinstance(one, str) or one == size for one, size in zip(wanted, shape, strict=True))
        for wanted, shape in given
    )
    return open_session(path if fits else open_sizes(model), session_options(1, "all")), names
