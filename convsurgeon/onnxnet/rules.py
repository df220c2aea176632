"""A node by its rule, and whether what comes of it is what onnxruntime computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, nn

from convsurgeon.onnxnet.engine import to_torch
from convsurgeon.onnxnet.operators import activations, arithmetic, shapes, windows
from convsurgeon.onnxnet.operators.op import Op, Rule, View

RULES: dict[str, Rule] = shapes.RULES | windows.RULES | arithmetic.RULES | activations.RULES

_BOUNDED = ("Sigmoid", "HardSigmoid", "Tanh", "Softmax")
"""Operators that the runtime approximates to so much of 1, however small all of their values are."""


def ruled(view: View) -> nn.Module | None:
    """What stands for a node; None where there is no rule, or where it knows no module."""
    rule = RULES.get(view.node.op_type)
    try:
        return None if rule is None else rule(view)
    except Exception:  # an attribute that is missing, or of another kind
        return None


def places(node: NodeProto, module: nn.Module) -> Sequence[str]:
    """The inputs that a module is called with: those that are not fixed."""
    if isinstance(module, Op):
        return [name for place, name in enumerate(node.input) if name and place not in module.fixed]
    return [name for name in node.input[:1] if name]


def close(found: Any, wanted: Any, operator: str = "") -> bool:
    """Whether a value of torch is the runtime's, to 1e-5; half precision as far as it goes."""
    if not isinstance(found, Tensor) or not isinstance(wanted, np.ndarray):
        return False
    reference = to_torch(wanted)
    if not isinstance(reference, Tensor) or found.shape != reference.shape or found.dtype != reference.dtype:
        return False
    if not reference.is_floating_point():
        return bool(torch.equal(found, reference))
    same = torch.equal(found.isfinite(), reference.isfinite())
    inside = reference.isfinite()
    one, two = found[inside].double(), reference[inside].double()
    limit = 4e-3 if wanted.dtype == np.float16 else 1e-5
    if not one.numel():
        return same
    scale = max(float(two.abs().max()), 0.1 if operator in _BOUNDED else 1e-30)
    return same and float((one - two).abs().max()) <= limit * scale
