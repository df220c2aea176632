"""Evening out channel ranges before quantisation: the same function, but every channel fills its eight bits.

Activations are quantised per tensor, and between a depthwise and a pointwise conv the channels of one tensor may
differ in range by orders of magnitude. With nothing (or a ReLU) in between, channel c may be divided by any s_c > 0
where it is made and multiplied by it where it is read:

    W2 relu(W1 x + b1) = (W2 S) relu(S^-1 (W1 x + b1))

exactly, for sums of convs and for several readers too. With a_c the largest activation of the channel on the
calibration inputs and r_c the largest share that any reader's weight for it has in its output channel's range,

    s_c = sqrt(a_c / r_c)

makes activation and weight ranges equally uneven (after Nagel et al., Data-Free Quantization, ICCV 2019, arXiv
1906.04721, with measured instead of estimated ranges). A depthwise reader has a scale for every channel, so there
s_c = a_c: its activations become even, its weights are rounded as before. In a chain of three such as CP both of its
seams are evened out, exactly, as nothing stands between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from convsurgeon.int8.activations import exposed
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import Feed

_RANGE = 256.0  # scales beyond this would trade one rounding problem for another


@dataclass(frozen=True)
class _Seam:
    """A value that only convs read and whose channels only convs make."""

    value: str
    makers: tuple[tuple[NodeProto, int], ...]
    """With the channel at which each begins: several may stand side by side."""
    readers: tuple[NodeProto, ...]


def equalise(model: ModelProto, feeds: Sequence[Feed]) -> dict[str, npt.NDArray[np.float64]]:
    """Evens out the channels of every value that allows it, in place.

    Returns:
        What each channel (C,) that a conv reads was divided by, by the name of the conv's node.
    """
    graph = model.graph
    seams = _seams(graph)
    if not seams:
        return {}
    session = exposed(model, [seam.value for seam in seams])
    peaks: dict[str, npt.NDArray[np.float64]] = {}
    for feed in feeds:
        values = session.run([seam.value for seam in seams], feed)
        for seam, value in zip(seams, values, strict=True):
            # One channel axis: everything else is reduced.
            peak = np.abs(value).max(axis=tuple(axis for axis in range(value.ndim) if axis != 1)).astype(np.float64)
            peaks[seam.value] = np.maximum(peaks.get(seam.value, 0.0), peak)
    scales: dict[str, npt.NDArray[np.float64]] = {}
    for seam in seams:
        scale = _scale(graph, seam, peaks[seam.value])
        scales |= {node.name: scale for node in seam.readers}
    return scales


def _seams(graph: GraphProto) -> list[_Seam]:
    made, counts, read = proto.producers(graph), proto.uses(graph), proto.readers(graph)
    known = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for node in graph.node:
        value = node.output[0]
        readers = read.get(value, [])
        own = all(_owns(other, known, counts) and other.input[0] == value for other in readers)
        if not readers or not own or counts[value] != len(readers):
            continue
        start = made.get(node.input[0]) if node.op_type == "Relu" else node
        if start is not node and counts[node.input[0]] != 1:
            continue
        makers = _makers(start, made, known, counts)
        if makers:
            found.append(_Seam(value, tuple(makers), tuple(readers)))
    return found


def _makers(
    start: NodeProto | None, made: dict[str, NodeProto], known: dict[str, TensorProto], counts: dict[str, int]
) -> list[tuple[NodeProto, int]]:
    """The convs that a value is the sum of, or that stand side by side in it; none if anything else takes part."""
    if start is not None and start.op_type == "Concat" and proto.attribute(start, "axis", 1) == 1:
        return _side_by_side(start, made, known, counts)
    found, pending = [], [start]
    while pending:
        node = pending.pop()
        if node is None or (node is not start and counts[node.output[0]] != 1):
            return []
        if node.op_type == "Add":
            pending += [made.get(name) for name in node.input]
        elif _owns(node, known, counts):
            found.append((node, 0))
        else:
            return []
    return found


def _side_by_side(
    concat: NodeProto, made: dict[str, NodeProto], known: dict[str, TensorProto], counts: dict[str, int]
) -> list[tuple[NodeProto, int]]:
    """One conv for every piece, which nothing else reads."""
    found, offset = [], 0
    for name in concat.input:
        node = made.get(name)
        if node is None or counts[name] != 1 or not _owns(node, known, counts):
            return []
        found.append((node, offset))
        offset += known[node.input[1]].dims[0]
    return found


def _owns(node: NodeProto, weights: Mapping[str, TensorProto], counts: dict[str, int]) -> bool:
    """A conv whose weight and bias are its own constants."""
    own = [name for name in node.input[1:] if name]
    return node.op_type == "Conv" and all(name in weights and counts[name] == 1 for name in own)


def _scale(graph: GraphProto, seam: _Seam, peaks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    known = proto.constants(graph)
    kernels = {node.input[1]: proto.array(known[node.input[1]]) for node in seam.readers}
    share = np.max([_shares(kernels[node.input[1]], _groups(node)) for node in seam.readers], axis=0)
    alive = (peaks > 0) & (share > 0)
    scale = np.ones_like(peaks)
    free = all(kernels[node.input[1]].shape[1] == 1 for node in seam.readers)
    scale[alive] = peaks[alive] if free else np.sqrt(peaks[alive] / share[alive])
    scale[alive] /= np.exp(np.log(scale[alive]).mean())
    scale = np.clip(scale, 1 / _RANGE, _RANGE)
    for node, first in seam.makers:
        for name in filter(None, node.input[1:]):
            values = proto.array(known[name])
            own = scale[first : first + len(values)].reshape(-1, *[1] * (values.ndim - 1))
            proto.put(graph, name, values / own, like=known[name])
    for node in seam.readers:
        values = kernels[node.input[1]]
        proto.put(graph, node.input[1], values * _per_input(scale, values, _groups(node)), like=known[node.input[1]])
    return scale


def _groups(node: NodeProto) -> int:
    return int(proto.attribute(node, "group", 1))


def _shares(kernel: npt.NDArray[np.float64], groups: int) -> npt.NDArray[np.float64]:
    """Largest share of each input channel in the range of an output channel; shape (inputs,)."""
    sizes = np.abs(kernel).reshape(groups, kernel.shape[0] // groups, kernel.shape[1], -1).max(axis=-1)
    ranges = np.maximum(sizes.max(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    shares: npt.NDArray[np.float64] = (sizes / ranges).max(axis=1).reshape(-1)
    return shares


def _per_input(scale: npt.NDArray[np.float64], kernel: npt.NDArray[np.float64], groups: int) -> npt.NDArray[np.float64]:
    """The scales laid out like a kernel of shape (outputs, inputs per group, ...)."""
    grouped = np.repeat(scale.reshape(groups, -1), kernel.shape[0] // groups, axis=0)
    return grouped.reshape(*kernel.shape[:2], *[1] * (kernel.ndim - 2))
