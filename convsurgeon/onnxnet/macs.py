"""Multiply-accumulates of one node, from the shapes of what it reads and makes.

Conv           output elements * kernel elements per output channel
ConvTranspose  input elements * kernel elements per input channel
Gemm, MatMul   output elements * length of the summed axis
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnx import NodeProto

from convsurgeon.onnxnet import proto

Shapes = Mapping[str, tuple[int, ...]]

CONVS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
PRODUCTS = {"Gemm": 1, "FusedGemm": 1, "MatMul": 1, "FusedMatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
"""Operators and the position of their kernel or second factor."""


def has_macs(node: NodeProto) -> bool:
    """Return whether a node is of a kind that has MACs."""
    return node.op_type in CONVS or node.op_type in PRODUCTS or node.op_type == "ConvTranspose"


def macs_of(node: NodeProto, shapes: Shapes) -> int | None:
    """Return the MACs of such a node; None where a shape is not known."""
    place = {**CONVS, **PRODUCTS}.get(node.op_type, 1)
    left, right, out = (shapes.get(name) for name in (node.input[0], node.input[place], node.output[0]))
    if left is None or right is None or out is None:
        return None
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    if node.op_type in CONVS:
        return math.prod(out) * math.prod(right[1:])
    summed = left[0] if proto.number_attribute(node, "transA", 0) else left[-1]
    return math.prod(out) * summed
