"""The two ends of a network that adds to an image: what stays in float there, because eight bits show and save little.

An image of 256 levels has as much noise as a good restorer leaves, and convs of a few channels on one side run about as
fast in float, for which the runtime has blocked kernels. VDSR x2 on Set5: float 37.36 dB, all in int8 37.19, the last
sum in float 37.24, that and the last conv 37.26, that and the first conv 37.33. Times of that of all in int8, one and
two threads of an AMD EPYC with AVX-512 VNNI, 128 x 128: VDSR 1.02 and 1.02, DnCNN 1.02 and 1.04, with CP at 0.35 0.99
and 1.02, 1.02 and 1.03. Where nothing of the input is in the output (masks, shuffled outputs of little networks) it
cost up to 1.2 times with one thread and 1.6 with two, so those are rounded whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from onnx import ModelProto, NodeProto

from convsurgeon.onnx import graph
from convsurgeon.onnxnet import proto

IMAGE = 4
"""Channels of an image at most."""
THIN = 16
"""Channels that an image is shuffled into at most: a block of the runtime's layout."""

_MIXING = ("Add", "Sub", "Mul", "Div", "Neg", "Clip", "Relu", "Sigmoid", "Tanh")
_MOVING = ("Pad", "Resize", "Reshape", "Transpose", "DepthToSpace", "SpaceToDepth", "Concat")
_ALONG = frozenset((*_MIXING, *_MOVING))
"""What may stand between an image and its convs."""

Shapes = Mapping[str, tuple[int | str, ...]]
Nodes = Callable[[str], Iterable[NodeProto]]
Values = Callable[[NodeProto], Iterable[str]]


def image_ends(model: ModelProto) -> frozenset[str]:
    """Names of the nodes from an image that is read to its first convs and from the last ones to an image that is made.

    Args:
        model: a float graph, of any batch and size; it is not changed.

    Returns:
        None at all if no output is an image (four axes, few channels, more than one place) that one that is read is
        added to.
    """
    outputs = [name for name, shape in proto.signature(model.graph.output) if _is_image(shape)]
    if not outputs:
        return frozenset()
    known = graph.infer_shapes(ModelProto.FromString(model.SerializeToString())).graph
    shapes = dict(proto.signature((*known.input, *known.value_info, *known.output)))
    fixed = set(proto.constants(known))
    inputs = [info.name for info in known.input if info.name not in fixed and _is_image(shapes[info.name])]
    made = proto.producers(known)
    readers = proto.readers(known)
    links = _links(known.node)
    back, seen = _walked(
        outputs, lambda name: [made[name]] if name in made else [], lambda node: node.input, shapes, links
    )
    if seen.isdisjoint(inputs):
        return frozenset()
    forth, _ = _walked(inputs, lambda name: readers.get(name, []), lambda node: node.output, shapes, links)
    return frozenset(back | forth)


def _links(nodes: Iterable[NodeProto]) -> frozenset[str]:
    """Names of what one conv may have been rewritten into: pointwise and depthwise convs, and sums of such."""
    found: dict[str, str] = {}  # by the value that is made
    for node in nodes:
        if node.op_type == "Conv":
            sizes = next((item.ints for item in node.attribute if item.name == "kernel_shape"), (0,))
            linked = proto.attribute(node, "group", 1) > 1 or all(size == 1 for size in sizes)
        else:
            linked = node.op_type in ("Add", "Concat") and all(name in found for name in node.input)
        if linked:
            found[node.output[0]] = node.name
    return frozenset(found.values())


def _walked(
    names: Iterable[str], nodes_of: Nodes, values_of: Values, shapes: Shapes, links: Collection[str]
) -> tuple[set[str], set[str]]:
    """Names of the nodes, and of the values, on all ways from some values to the first convs, whole where rewritten."""
    found: set[str] = set()
    waiting, seen = [(name, False) for name in names], set(names)
    while waiting:
        value, inside = waiting.pop()
        for node in nodes_of(value):
            conv, linked = node.op_type == "Conv", node.name in links
            along = node.op_type in _ALONG and all(_is_thin(shapes.get(name, ())) for name in node.output)
            if not (linked if inside else conv or along):
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
    few = len(shape) == 4 and isinstance(shape[1], int) and 0 < shape[1] <= IMAGE
    return few and tuple(shape[2:]) != (1, 1)


def _is_thin(shape: tuple[int | str, ...]) -> bool:
    """Few channels, or not one axis of them, as in the middle of a shuffle."""
    return len(shape) != 4 or (isinstance(shape[1], int) and 0 < shape[1] <= THIN)
