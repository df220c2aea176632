"""What follows the last convs of a network stays in float where one scale would have to serve values far apart.

Boxes in pixels beside scores between 0 and 1, or scores that are masked by -10 000: with 255 steps for all of them
every score is one of two values. Nothing there takes time, so all of it is left in float, and so is a conv that itself
makes values far apart; other convs before it are rounded, each with a scale of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from convsurgeon.base.arrays import Array
from convsurgeon.int8.compare import LAYERS
from convsurgeon.int8.feeds import expose_values
from convsurgeon.int8.target import Target
from convsurgeon.onnx import graph
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import Feed

APART = 16.0
"""Times as wide as a channel that a whole value may be: the channel has as many of the 255 steps then."""

_BATCHES = 4
_FEWEST = 8
"""Values of a channel that say how wide it is."""
_SPREAD = 4.0
"""Standard deviations from end to end of a channel."""
_PART = 0.1
"""Share of the channels that may be narrower than any: by chance, or because nothing of theirs was shown."""


def find_float_joins(model: ModelProto, feeds: Sequence[Feed], target: Target) -> frozenset[str]:
    """Return the names of the nodes behind the last convs, if values far apart meet there; none otherwise.

    A target that wants all nodes rounded gets them. Where the graph cannot be run on the inputs the runtime raises.
    """
    if target.whole:
        return frozenset()
    tail, last = _tail(model.graph)
    types = proto.element_types(graph.inferred(model))
    made = {node.output[0]: node for node in (*tail, *last) if node.output}
    shown = [name for name in made if types.get(name) == TensorProto.FLOAT]
    if not shown:
        return frozenset()
    session = expose_values(model, shown)
    values = [session.run(shown, feed) for feed in feeds[:_BATCHES]]
    mixed = [name for name, found in zip(shown, zip(*values, strict=True), strict=True) if _is_mixed(found)]
    if not mixed:
        return frozenset()
    return frozenset([node.name for node in tail] + [node.name for node in last if node.output[0] in mixed])


def _tail(model: GraphProto) -> tuple[list[NodeProto], list[NodeProto]]:
    """Return the nodes behind the last convs and matrix products, and those layers."""
    makers = {name: node for node in model.node for name in node.output}
    tail: list[NodeProto] = []
    last: list[NodeProto] = []
    waiting, seen = [info.name for info in model.output], set()
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type in LAYERS:
            last.append(node)
        else:
            tail.append(node)
            waiting += node.input
    return tail, last


def _is_mixed(values: Iterable[Array]) -> bool:
    """Tell whether some channels of a value are so narrow that steps for all of it are too coarse for them."""
    arrays = [np.asarray(one, dtype=np.float64) for one in values]
    axes = {1, arrays[0].ndim - 1} if arrays[0].ndim > 2 else {arrays[0].ndim - 1}
    return any(_is_mixed_along(arrays, axis) for axis in axes if axis > 0)


def _is_mixed_along(arrays: Sequence[Array], axis: int) -> bool:
    if len({one.shape[axis] for one in arrays}) > 1:
        return False
    rows = np.concatenate([np.moveaxis(one, axis, 0).reshape(one.shape[axis], -1) for one in arrays], axis=1)
    if rows.shape[1] < _FEWEST or len(rows) < 2:
        return False
    whole = max(rows.max(), 0.0) - min(rows.min(), 0.0)
    spread = np.sort(_SPREAD * rows.std(1))
    spread = spread[spread > 1e-6 * whole]  # without those that are constant
    return len(spread) > 0 and bool(whole > APART * spread[int(_PART * len(spread))])
