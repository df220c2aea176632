"""Even out channel ranges before quantisation: the same function, but every channel fills its eight bits.

With nothing (or a ReLU) in between, channel c may be divided by any s_c > 0 where it is made and multiplied by it where
it is read: W2 relu(W1 x + b1) = (W2 S) relu(S^-1 (W1 x + b1)), exactly, for sums of convs and several readers too. With
a_c the largest activation on the calibration inputs and r_c the largest share of a reader's weight in the range of its
output channel, s_c = sqrt(a_c / r_c) makes activations and weights equally uneven (after Nagel et al., ICCV 2019, arXiv
1906.04721). A depthwise reader has a scale for every channel, so there s_c = a_c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto

from convsurgeon.base.arrays import Array
from convsurgeon.int8.feeds import expose_values
from convsurgeon.onnx.graph import owns_constants, summed_convs
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import Feed

_LARGEST = 256.0
"""Scales beyond it would trade one rounding problem for another."""


@dataclass(frozen=True)
class _Seam:
    """A value that only convs read and whose channels only convs make."""

    value: str
    makers: list[tuple[NodeProto, int]]
    """Each with its first channel in the value: several may stand side by side."""
    readers: list[NodeProto]


def equalise(model: ModelProto, feeds: Sequence[Feed]) -> dict[str, Array]:
    """Even out the channels of every value that allows it, in place.

    Return what the channels (C,) that a conv reads were divided by, by the name of the conv's node.
    """
    graph = model.graph
    seams = _find_seams(graph)
    if not seams:
        return {}
    session = expose_values(model, [seam.value for seam in seams])
    peaks: dict[str, Array] = {}
    for feed in feeds:
        values = session.run([seam.value for seam in seams], feed)
        for seam, value in zip(seams, values, strict=True):
            peak = np.abs(value).max(axis=tuple(axis for axis in range(value.ndim) if axis != 1)).astype(np.float64)
            peaks[seam.value] = np.maximum(peaks.get(seam.value, 0.0), peak)
    scales: dict[str, Array] = {}
    for seam in seams:
        scale = _scale(graph, seam, peaks[seam.value])
        _apply(graph, seam, scale)
        scales |= {node.name: scale for node in seam.readers}
    return scales


def _find_seams(graph: GraphProto) -> list[_Seam]:
    made, counts, read, known = proto.producers(graph), proto.uses(graph), proto.readers(graph), proto.stored(graph)

    def own_conv(node: NodeProto) -> bool:
        return node.op_type == "Conv" and owns_constants(node, known, counts)

    def makers(start: NodeProto | None) -> list[tuple[NodeProto, int]]:
        """Return the convs whose outputs are summed or stand side by side in a value; none if others take part."""
        if start is None or start.op_type != "Concat" or proto.number_attribute(start, "axis", 1) != 1:
            return [(conv, 0) for conv in summed_convs(start, made, counts, own_conv)]
        found, offset = [], 0
        for name in start.input:
            node = made.get(name)
            if node is None or not own_conv(node) or counts[name] != 1:
                return []
            found.append((node, offset))
            offset += known[node.input[1]].dims[0]
        return found

    seams = []
    for node in graph.node:
        value = node.output[0]
        readers = read.get(value, [])
        own = all(own_conv(other) and other.input[0] == value for other in readers)
        if not readers or not own or counts[value] != len(readers):
            continue
        start = made.get(node.input[0]) if node.op_type == "Relu" else node
        alone = start is node or counts[node.input[0]] == 1
        if alone and (found := makers(start)):
            seams.append(_Seam(value, found, readers))
    return seams


def _scale(graph: GraphProto, seam: _Seam, peaks: Array) -> Array:
    """Return what every channel (C,) of a seam is divided by."""
    known = proto.stored(graph)
    kernels = [proto.array(known[node.input[1]]) for node in seam.readers]
    shares = [_shares(kernel, _groups(node)) for kernel, node in zip(kernels, seam.readers, strict=True)]
    share = np.max(shares, axis=0)
    alive = (peaks > 0) & (share > 0)
    scale = np.ones_like(peaks)
    depthwise = all(kernel.shape[1] == 1 for kernel in kernels)
    scale[alive] = peaks[alive] if depthwise else np.sqrt(peaks[alive] / share[alive])
    scale[alive] /= np.exp(np.log(scale[alive]).mean())
    return np.clip(scale, 1 / _LARGEST, _LARGEST)


def _apply(graph: GraphProto, seam: _Seam, scale: Array) -> None:
    known = proto.stored(graph)
    for node, first in seam.makers:
        for name in filter(None, node.input[1:]):
            values = proto.array(known[name])
            own = scale[first : first + len(values)].reshape(-1, *[1] * (values.ndim - 1))
            proto.put(graph, name, values / own, like=known[name])
    for node in seam.readers:
        kernel = proto.array(known[node.input[1]])
        per_group = scale.reshape(_groups(node), -1)
        rows = np.repeat(per_group, len(kernel) // len(per_group), axis=0)  # one for every output channel
        scaled = kernel * rows.reshape(*kernel.shape[:2], *[1] * (kernel.ndim - 2))
        proto.put(graph, node.input[1], scaled, like=known[node.input[1]])


def _shares(kernel: Array, groups: int) -> Array:
    """Return the largest share of every input channel in the range of an output channel, (inputs,)."""
    sizes = np.abs(kernel).reshape(groups, kernel.shape[0] // groups, kernel.shape[1], -1).max(axis=-1)
    ranges = np.maximum(sizes.max(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    shares: Array = (sizes / ranges).max(axis=1).reshape(-1)
    return shares


def _groups(node: NodeProto) -> int:
    return int(proto.number_attribute(node, "group", 1))
