"""The two ends of a network that adds to an image, which stay in float: eight bits show there and save little time.

An image of 256 levels has as much noise as a good restorer leaves, and the runtime has blocked float kernels for convs
of a few channels on one side. A network whose output holds nothing of its input (masks, classes) is rounded whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from onnx import ModelProto, NodeProto

from convsurgeon.int8.target import Target
from convsurgeon.onnx import graph
from convsurgeon.onnxnet import proto

_IMAGE = 4
"""Channels of an image at most."""
_THIN = 16
"""Channels that an image is shuffled into at most: a block of the runtime's layout."""

_MIXING = ("Add", "Sub", "Mul", "Div", "Neg", "Clip", "Relu", "Sigmoid", "Tanh")
_MOVING = ("Pad", "Resize", "Reshape", "Transpose", "DepthToSpace", "SpaceToDepth", "Concat")
_BETWEEN = frozenset((*_MIXING, *_MOVING))
"""Operators that may stand between an image and its convs."""

_Shapes = Mapping[str, tuple[int | str, ...]]


def find_float_ends(model: ModelProto, target: Target) -> frozenset[str]:
    """Return the names of the nodes from an input image to its first convs and from the last ones to an output image.

    None where the target wants all nodes rounded, or where no input image is added to an output image (four axes, few
    channels, more than one pixel). The graph may have any batch and size; it is not changed.
    """
    outputs = [name for name, shape in proto.signature(model.graph.output) if _is_image(shape)]
    if target.whole or not outputs:
        return frozenset()
    known = graph.inferred(model)
    shapes = dict(proto.signature((*known.input, *known.value_info, *known.output)))
    constants = set(proto.constants(known))
    inputs = [info.name for info in known.input if info.name not in constants and _is_image(shapes[info.name])]
    links = _find_links(known.node)
    made = {name: [node] for name, node in proto.producers(known).items()}
    back, seen = _walk(outputs, made, lambda node: node.input, shapes, links)
    if seen.isdisjoint(inputs):
        return frozenset()
    forth, _ = _walk(inputs, proto.readers(known), lambda node: node.output, shapes, links)
    return frozenset(back | forth)


def _find_links(nodes: Iterable[NodeProto]) -> frozenset[str]:
    """Return the names of what one conv may have been rewritten into: pointwise, depthwise convs, sums of these."""
    found: dict[str, str] = {}  # by the value that is made
    for node in nodes:
        if node.op_type == "Conv":
            sizes = next((item.ints for item in node.attribute if item.name == "kernel_shape"), (0,))
            linked = proto.number_attribute(node, "group", 1) > 1 or all(size == 1 for size in sizes)
        else:
            linked = node.op_type in ("Add", "Concat") and all(name in found for name in node.input)
        if linked:
            found[node.output[0]] = node.name
    return frozenset(found.values())


def _walk(
    names: Iterable[str],
    nodes: Mapping[str, Sequence[NodeProto]],
    values_of: Callable[[NodeProto], Iterable[str]],
    shapes: _Shapes,
    links: Collection[str],
) -> tuple[set[str], set[str]]:
    """Return the names of the nodes and values between some values and the nearest convs, with what these became."""
    found: set[str] = set()
    waiting, seen = [(name, False) for name in names], set(names)
    while waiting:
        value, inside = waiting.pop()
        for node in nodes.get(value, ()):
            conv, linked = node.op_type == "Conv", node.name in links
            between = node.op_type in _BETWEEN and all(_is_thin(shapes.get(name, ())) for name in node.output)
            if not (linked if inside else conv or between):
                continue
            found.add(node.name)
            if inside or conv:
                further = list(values_of(node)) if linked else []
            else:
                further = [name for name in values_of(node) if _is_thin(shapes.get(name, ()))]
            waiting += [(name, inside or conv) for name in further if name not in seen]
            seen.update(further)
    return found, seen


def _is_image(shape: tuple[int | str, ...]) -> bool:
    few = len(shape) == 4 and isinstance(shape[1], int) and 0 < shape[1] <= _IMAGE
    return few and tuple(shape[2:]) != (1, 1)


def _is_thin(shape: tuple[int | str, ...]) -> bool:
    """Tell whether a value has few channels, or no single axis of channels, as in the middle of a shuffle."""
    return len(shape) != 4 or (isinstance(shape[1], int) and 0 < shape[1] <= _THIN)
