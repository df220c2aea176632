r"""Weights rounded to what their layer computes, not each to the nearest: optimal brain quantisation, and the bias.

With the second moment `H = E[x x^T]` of what a conv sees in the rounded network, its output is off by

    tr((W - Q) H (W - Q)^T)

for a weight matrix `Q` on the grid of its rows. Column by column, what rounding one weight did is made good by those
that are still to be rounded (GPTQ: Frantar et al., ICLR 2023, arXiv 2210.17323; Hassibi & Stork 1993),

    W[:, j+1:] -= (W[:, j] - Q[:, j]) / U[j, j] * U[j, j+1:]          H^-1 = U^T U

columns with the most energy first. Law: of every row the better of this and of rounding to the nearest is kept, so the
error by `H` is never above that of the nearest. What is left of it on average goes into the bias,
`b += (W - Q) E[x]` (Nagel et al. 2019, section 4.2).

The targets are the layer's own on the values that it gets. Regressing the float network's outputs instead, layer after
layer behind the rounded ones, costs a session per layer (24 s instead of 0.4 for 55 convs) and was no better: 0.0050
and 0.0051 against 0.0049 (ResNet-20 with CP; error of the output, 0.0082 where weights are rounded to the nearest).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from convsurgeon.int8.activations import exposed
from convsurgeon.int8.qdq import Scales
from convsurgeon.int8.target import Target
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import DEQUANTISED, Feed

Array = npt.NDArray[np.float64]

LARGEST = 1024
"""Inputs of an output from which on weights are rounded to the nearest: their moments would take too long."""

_POSITIONS, _IMAGES = 24, 256
"""Drawn from every image, and images: six rows and more for every input of the widest layer that is fitted."""

_DAMPING = 0.01
_AXES = 4


@dataclass(frozen=True)
class _Layer:
    """A conv whose weights are its own, with its kernel (outputs, inputs per group, kh, kw)."""

    node: NodeProto
    kernel: Array
    groups: int
    seen: str
    """The value it reads, as it is in the rounded graph."""


def fit(model: ModelProto, rough: ModelProto, feeds: Sequence[Feed], target: Target, left: Collection[str]) -> Scales:
    """Rounds the weights of every conv of a float graph and corrects its bias, in place.

    Args:
        model: the float graph; its weights become values on the grid.
        rough: the same graph rounded, which says what every layer will see.
        feeds: calibration inputs.
        target: whose weights these are.
        left: names of nodes that stay in float.

    Returns:
        The scales of the weights that were rounded, by name.
    """
    layers = [one for one in _layers(model, rough) if one.node.name not in left]
    scales: dict[str, Array] = {}
    if not layers:
        return scales
    for one, (mean, moment) in zip(layers, _moments(rough, layers, feeds), strict=True):
        scale = _scales(one.kernel, target)
        rows = one.kernel.reshape(one.groups, len(one.kernel) // one.groups, -1)
        steps = scale.reshape(rows.shape[:2])
        done = [
            _on_grid(rows[group], moment[group] if moment is not None else None, steps[group], target.largest_weight)
            for group in range(one.groups)
        ]
        shift = np.concatenate([(rows[g] - done[g]) @ mean[g] for g in range(one.groups)])
        _write(model, one, np.stack(done).reshape(one.kernel.shape), shift)
        scales[one.node.input[1]] = scale if target.per_channel else scale[:1]
    return scales


def fitted(graph: GraphProto) -> frozenset[str]:
    """Names of the convs of a float graph whose weights can be rounded to what they compute, not to the nearest."""
    return frozenset(one.name for one in graph.node if _inputs(one, *_constants(graph)) in range(1, LARGEST + 1))


def rounded_to_moment(rows: Array, moment: Array, steps: Array, largest: int) -> Array:
    """Rows (O, n) on their grids, the errors by `moment` (n, n) as small as can be found column by column.

    Args:
        rows: weights.
        moment: second moment of the inputs.
        steps: of every row's grid, (O,).
        largest: level of the grid.
    """
    nearest = _nearest(rows, steps[:, None], largest)
    upper = _upper(moment)
    if upper is None:
        return nearest
    order, factor = upper
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


def _upper(moment: Array) -> tuple[npt.NDArray[np.intp], Array] | None:
    """The order of the columns, and the upper triangle `U` of the inverse in it; None where there is no inverse."""
    energies = np.diag(moment)
    order = np.argsort(-energies, kind="stable")
    damped = moment[np.ix_(order, order)] + max(_DAMPING * float(energies.mean()), 1e-30) * np.eye(len(moment))
    try:
        factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    except np.linalg.LinAlgError:
        return None
    return (order, factor) if np.isfinite(factor).all() else None


def _on_grid(rows: Array, moment: Array | None, steps: Array, largest: int) -> Array:
    if moment is None:
        return _nearest(rows, steps[:, None], largest)
    return rounded_to_moment(rows, moment, steps, largest)


def _scales(kernel: Array, target: Target) -> Array:
    """The step of every output's grid (outputs,), the same for all where the target has one per tensor."""
    sizes = np.abs(kernel).reshape(len(kernel), -1).max(axis=1)
    sizes = sizes if target.per_channel else np.full_like(sizes, sizes.max())
    steps = np.where(sizes > 0, sizes / target.largest_weight, 1.0)
    return np.asarray(steps.astype(np.float32), dtype=np.float64)


def _layers(model: ModelProto, rough: ModelProto) -> list[_Layer]:
    """The convs of images whose weights can be rounded by themselves."""
    known, counts = _constants(model.graph)
    there = {name for node in rough.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        if _inputs(node, known, counts) and (seen := node.input[0] + DEQUANTISED) in there:
            kernel = proto.array(known[node.input[1]])
            found.append(_Layer(node, kernel, int(proto.attribute(node, "group", 1)), seen))
    return found


def _constants(graph: GraphProto) -> tuple[dict[str, TensorProto], dict[str, int]]:
    """The initializers by name, and how often every value is read."""
    return {tensor.name: tensor for tensor in graph.initializer}, proto.uses(graph)


def _inputs(node: NodeProto, known: Mapping[str, TensorProto], counts: Mapping[str, int]) -> int:
    """Inputs of an output of a conv whose weights can be rounded by themselves; 0 of every other node."""
    own = [name for name in node.input[1:] if name]
    if node.op_type != "Conv" or not all(name in known and counts[name] == 1 for name in own):
        return 0
    padded = any(item.name == "auto_pad" and item.s != b"NOTSET" for item in node.attribute)
    sizes = known[node.input[1]].dims
    return math.prod(sizes[1:]) if len(sizes) == _AXES and not padded else 0


def _moments(rough: ModelProto, layers: Sequence[_Layer], feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
    """Mean (groups, n) and second moment (groups, n, n) of the patches that every layer sees."""
    names = list(dict.fromkeys(one.seen for one in layers))
    session = exposed(rough, names)
    random = np.random.default_rng(0)
    sums: list[list[Array | None]] = [[None, None] for _ in layers]
    rows = [0] * len(layers)
    for feed in feeds:
        if rows[0] >= _POSITIONS * _IMAGES:
            break
        values = dict(zip(names, session.run(names, feed), strict=True))
        for number, one in enumerate(layers):
            patches = _patches(values[one.seen], one, random)
            moment = patches.transpose(1, 2, 0) @ patches.transpose(1, 0, 2) if patches.shape[2] <= LARGEST else None
            _add(sums[number], 0, patches.sum(axis=0))
            if moment is not None:
                _add(sums[number], 1, moment)
            rows[number] += len(patches)
    found = []
    for (total, moment), count in zip(sums, rows, strict=True):
        assert total is not None
        found.append((total / count, None if moment is None else moment / count))
    return found


def _add(sums: list[Array | None], place: int, value: Array) -> None:
    before = sums[place]
    sums[place] = value if before is None else before + value


def _patches(value: npt.NDArray[np.float32], one: _Layer, random: np.random.Generator) -> Array:
    """What some outputs of a conv are computed from: (images x positions, groups, n)."""
    settings = {item.name: onnx.helper.get_attribute_value(item) for item in one.node.attribute}
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


def _write(model: ModelProto, one: _Layer, kernel: Array, shift: Array) -> None:
    """Puts a kernel into the graph, and what it is off by on average into the bias, which is made if there is none."""
    graph, node = model.graph, one.node
    known = {tensor.name: tensor for tensor in graph.initializer}
    like = known[node.input[1]]
    proto.put(graph, node.input[1], kernel, like=like)
    if len(node.input) > 2 and node.input[2]:
        proto.put(graph, node.input[2], proto.array(known[node.input[2]]) + shift, like=like)
        return
    name = proto.unique(f"{node.input[1]}/bias", {*known, *proto.producers(graph)})
    proto.put(graph, name, shift, like=like)
    del node.input[2:]
    node.input.append(name)
