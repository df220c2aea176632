r"""Round weights to what their layer computes, not each to the nearest: optimal brain quantisation, and the bias.

With the second moment `H = E[x x^T]` of what a conv sees in the rounded network, its output is off by
`tr((W - Q) H (W - Q)^T)`. Column by column, most energy first, the weights that are still to be rounded make up for the
error (GPTQ: Frantar et al., ICLR 2023, arXiv 2210.17323), with `H^-1 = U^T U`:
`W[:, j+1:] -= (W[:, j] - Q[:, j]) / U[j, j] * U[j, j+1:]`. Law: of every row the better of this and of rounding to the
nearest is kept, so the error by `H` is never above that of the nearest. The mean of the remaining error goes into the
bias, `b += (W - Q) E[x]` (Nagel et al. 2019, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from convsurgeon.base.arrays import Array
from convsurgeon.int8.feeds import expose_values
from convsurgeon.int8.qdq import Scales
from convsurgeon.int8.target import Target
from convsurgeon.onnx.graph import owns_constants
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import DEQUANTISED, Feed

_LARGEST = 1024
"""Inputs of an output beyond which weights are rounded to the nearest: their moments would take too long."""

_POSITIONS, _IMAGES = 24, 256
"""Positions of an image, and images, that patches are taken from."""

_DAMPING = 0.01


@dataclass(frozen=True)
class _Layer:
    """A conv whose weights are its own, with its kernel (outputs, inputs per group, kh, kw)."""

    node: NodeProto
    kernel: Array
    groups: int
    seen: str
    """The value it reads, as it is in the rounded graph."""


def round_weights(
    model: ModelProto, rough: ModelProto, feeds: Sequence[Feed], target: Target, left: Collection[str]
) -> Scales:
    """Round the weights of every conv of a float graph and correct its bias, in place; return the weights' scales.

    `rough` is the same graph rounded to the nearest, which says what every layer will see; the nodes in `left` stay.
    """
    layers = [one for one in _find_layers(model, rough) if one.node.name not in left]
    scales: dict[str, Array] = {}
    for one, (mean, moment) in zip(layers, _moments(rough, layers, feeds), strict=True):
        scale = _scales(one.kernel, target)
        rows = one.kernel.reshape(one.groups, len(one.kernel) // one.groups, -1)
        steps = scale.reshape(rows.shape[:2])
        rounded, shift = np.empty_like(rows), []
        for group, own in enumerate(rows):
            own_moment = None if moment is None else moment[group]
            rounded[group] = round_rows(own, own_moment, steps[group], target.largest_weight)
            shift.append((own - rounded[group]) @ mean[group])
        _store(model.graph, one, rounded.reshape(one.kernel.shape), np.concatenate(shift))
        scales[one.node.input[1]] = scale if target.per_channel else scale[:1]
    return scales


def find_roundable(graph: GraphProto) -> frozenset[str]:
    """Return the names of the convs of a float graph whose weights are rounded to what they compute."""
    known, counts = proto.stored(graph), proto.uses(graph)
    return frozenset(node.name for node in graph.node if 0 < _inputs(node, known, counts) <= _LARGEST)


def round_rows(rows: Array, moment: Array | None, steps: Array, largest: int) -> Array:
    """Round rows (O, n) to grids of `steps` (O,) so that the error by `moment` (n, n) is small, or to the nearest."""
    nearest = _nearest(rows, steps[:, None], largest)
    inverse = None if moment is None else _inverse_factor(moment)
    if moment is None or inverse is None:
        return nearest
    order, factor = inverse
    left, found = rows[:, order].copy(), np.empty_like(rows)
    for column in range(rows.shape[1]):
        found[:, column] = _nearest(left[:, column], steps, largest)
        wrong = (left[:, column] - found[:, column]) / factor[column, column]
        left[:, column + 1 :] -= wrong[:, None] * factor[column, column + 1 :]
    made = np.empty_like(found)
    made[:, order] = found
    better = _cost(rows - made, moment) < _cost(rows - nearest, moment)
    return np.where(better[:, None], made, nearest)


def _cost(wrong: Array, moment: Array) -> Array:
    cost: Array = ((wrong @ moment) * wrong).sum(axis=1)
    return cost


def _nearest(values: Array, steps: Array, largest: int) -> Array:
    found: Array = np.clip(np.round(values / steps), -largest, largest) * steps
    return found


def _inverse_factor(moment: Array) -> tuple[npt.NDArray[np.intp], Array] | None:
    """Return the order of the columns and the upper triangle `U` of the inverse; None where there is no inverse."""
    energies = np.diag(moment)
    order = np.argsort(-energies, kind="stable")
    damped = moment[np.ix_(order, order)] + max(_DAMPING * float(energies.mean()), 1e-30) * np.eye(len(moment))
    try:
        factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    except np.linalg.LinAlgError:
        return None
    return (order, factor) if np.isfinite(factor).all() else None


def _scales(kernel: Array, target: Target) -> Array:
    """Return the step of every output's grid (outputs,), the same for all where the target has one per tensor."""
    sizes = np.abs(kernel).reshape(len(kernel), -1).max(axis=1)
    sizes = sizes if target.per_channel else np.full_like(sizes, sizes.max())
    steps = np.where(sizes > 0, sizes / target.largest_weight, 1.0)
    return np.asarray(steps.astype(np.float32), dtype=np.float64)


def _find_layers(model: ModelProto, rough: ModelProto) -> list[_Layer]:
    """Return the convs of images whose weights can be rounded by themselves."""
    known, counts = proto.stored(model.graph), proto.uses(model.graph)
    made = proto.producers(rough.graph)
    return [
        _Layer(node, proto.array(known[node.input[1]]), int(proto.number_attribute(node, "group", 1)), seen)
        for node in model.graph.node
        if _inputs(node, known, counts) and (seen := node.input[0] + DEQUANTISED) in made
    ]


def _inputs(node: NodeProto, known: Mapping[str, TensorProto], counts: Mapping[str, int]) -> int:
    """Return the inputs of an output of a conv of images with constants of its own; 0 for every other node."""
    if node.op_type != "Conv" or not owns_constants(node, known, counts):
        return 0
    padded = proto.attributes(node).get("auto_pad", "NOTSET") != "NOTSET"
    sizes = known[node.input[1]].dims
    return math.prod(sizes[1:]) if len(sizes) == 4 and not padded else 0


def _moments(rough: ModelProto, layers: Sequence[_Layer], feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
    """Return mean (groups, n) and second moment (groups, n, n) of the patches that every layer sees."""
    if not layers:
        return []
    names = list(dict.fromkeys(one.seen for one in layers))
    session = expose_values(rough, names)
    random = np.random.default_rng(0)
    sizes = [(one.groups, one.kernel[0].size) for one in layers]
    means = [np.zeros(size) for size in sizes]
    moments = [np.zeros((groups, n, n)) if n <= _LARGEST else None for groups, n in sizes]
    rows = [0] * len(layers)
    for feed in feeds:
        if rows[0] >= _POSITIONS * _IMAGES:
            break
        values = dict(zip(names, session.run(names, feed), strict=True))
        for number, one in enumerate(layers):
            patches = _patches(values[one.seen], one, random)
            means[number] += patches.sum(axis=0)
            if (sums := moments[number]) is not None:
                sums += patches.transpose(1, 2, 0) @ patches.transpose(1, 0, 2)
            rows[number] += len(patches)
    return [
        (mean / count, None if moment is None else moment / count)
        for mean, moment, count in zip(means, moments, rows, strict=True)
    ]


def _patches(value: npt.NDArray[np.float32], one: _Layer, random: np.random.Generator) -> Array:
    """Return what some outputs of a conv are computed from: (images x positions, groups, n)."""
    settings = proto.attributes(one.node)
    stride, dilation = settings.get("strides", (1, 1)), settings.get("dilations", (1, 1))
    top, left, bottom, right = settings.get("pads", (0, 0, 0, 0))
    padded = np.pad(value, ((0, 0), (0, 0), (top, bottom), (left, right)))
    axes = []
    for axis in (0, 1):
        taps = one.kernel.shape[2 + axis]
        room = (padded.shape[2 + axis] - dilation[axis] * (taps - 1) - 1) // stride[axis] + 1
        places = random.integers(0, room, _POSITIONS) * stride[axis]
        axes.append(places[:, None] + np.arange(taps) * dilation[axis])
    found = padded[:, :, axes[0][:, :, None], axes[1][:, None, :]]  # images, channels, positions, kh, kw
    found = found.transpose(0, 2, 1, 3, 4).reshape(len(value) * _POSITIONS, one.groups, -1)
    return found.astype(np.float64)


def _store(graph: GraphProto, one: _Layer, kernel: Array, shift: Array) -> None:
    """Put a kernel into the graph, and its mean error into the bias, which is made if there is none."""
    node, known = one.node, proto.stored(graph)
    like = known[node.input[1]]
    proto.put(graph, node.input[1], kernel, like=like)
    if len(node.input) > 2 and node.input[2]:
        proto.put(graph, node.input[2], proto.array(known[node.input[2]]) + shift, like=like)
        return
    name = proto.unique(f"{node.input[1]}/bias", {*known, *proto.producers(graph)})
    proto.put(graph, name, shift, like=like)
    del node.input[2:]
    node.input.append(name)
