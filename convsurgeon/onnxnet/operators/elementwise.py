"""Activations, norms, sums, products, reductions and matrices; modules of torch where fits know them."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsurgeon.onnxnet.modules import Operator
from convsurgeon.onnxnet.operators.node import Ints, NodeView, Translator, plain, to_ints, with_weights


def softmax(x: Tensor, *, axis: int, flat: bool, log: bool) -> Tensor:
    """Compute it along one axis, or before opset 13 along all axes from one on together."""
    function = F.log_softmax if log else F.softmax
    if not flat:
        return function(x, axis)
    return function(x.reshape(math.prod(x.shape[: axis % x.dim()]), -1), 1).reshape(x.shape)


def clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Limit values at either end, or at none."""
    return x * 1 if low is None and high is None else x.clamp(low, high)


def hard_sigmoid(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Compute a slope between 0 and 1."""
    return (alpha * x + beta).clamp(0, 1)


def instance_norm(x: Tensor, scale: Tensor, shift: Tensor, *, epsilon: float) -> Tensor:
    """Normalise every channel of every image by itself."""
    return F.instance_norm(x, weight=scale, bias=shift, eps=epsilon)


def layer_norm(x: Tensor, scale: Tensor, shift: Any = None, *, axis: int, epsilon: float) -> Tensor:
    """Normalise over all axes from one on together."""
    return F.layer_norm(x, list(x.shape[axis % x.dim() :]), scale, shift, epsilon)


def reduce_axes(x: Tensor, axes: Ints | None = None, *, how: str, keepdims: int = 1, noop: int = 0) -> Tensor:
    """Reduce some axes, or all of them, or none if `noop`."""
    along = [] if axes is None else to_ints(axes)
    if not along and noop:
        return x * 1
    found: Tensor = getattr(torch, how)(x, along or list(range(x.dim())), keepdim=bool(keepdims))
    return found


def gemm(a: Tensor, b: Tensor, c: Any = None, *, alpha: float, beta: float, left: bool, right: bool) -> Tensor:
    """Compute `alpha a b + beta c`, either factor transposed."""
    product = alpha * ((a.T if left else a) @ (b.T if right else b))
    return product if c is None else product + beta * c


def add_all(*parts: Tensor) -> Tensor:
    """Add any number of values."""
    return reduce(torch.add, parts[1:], parts[0] * 1)


def maximum(*parts: Tensor) -> Tensor:
    """Take the largest of any number of values, place by place."""
    return reduce(torch.maximum, parts[1:], parts[0] * 1)


def _softmax(view: NodeView) -> nn.Module:
    late, log = view.opset >= 13, view.node.op_type == "LogSoftmax"
    return view.operator(softmax, axis=view.get("axis", -1 if late else 1), flat=not late, log=log)


def _clip(view: NodeView) -> nn.Module | None:
    if view.varies(1) or view.varies(2):
        return None
    low, high = (_limit(view, place, name) for place, name in ((1, "min"), (2, "max")))
    if low == 0 and high == 6:
        return nn.ReLU6()
    if low is not None and high is not None and low <= high:
        return nn.Hardtanh(low, high)
    return Operator(clip, {}, {1: low, 2: high})


def _limit(view: NodeView, place: int, name: str) -> float | None:
    array = view.array(place)
    value = view.get(name) if array is None else float(array.reshape(-1)[0])
    return None if value is None or abs(value) > 3e38 else float(value)


def _prelu(view: NodeView) -> nn.Module | None:
    slope = view.tensor(1)
    channels = view.shape()[1] if len(view.shape()) > 1 else 1
    if slope is None or slope.numel() not in (1, channels) or (slope.dim() and slope.shape[0] not in (1, channels)):
        return None
    made = nn.PReLU(slope.numel())
    made.weight = nn.Parameter(slope.reshape(-1).clone(), requires_grad=False)
    return made


def _batch_norm(view: NodeView) -> nn.Module | None:
    scale, shift, mean, variance = (view.tensor(place) for place in (1, 2, 3, 4))
    if view.dims != 2 or view.outputs != 1 or view.get("training_mode", 0):
        return None
    if scale is None or shift is None or mean is None or variance is None:
        return None
    made = nn.BatchNorm2d(len(mean), eps=view.get("epsilon", 1e-5))
    made.weight, made.bias = (nn.Parameter(one.clone(), requires_grad=False) for one in (scale, shift))
    made.running_mean, made.running_var = mean.clone(), variance.clone()
    made.num_batches_tracked = None
    made.track_running_stats = False  # the file keeps its statistics: nobody takes new ones
    return made


def _layer_norm(view: NodeView) -> nn.Module | None:
    if view.outputs > 1:
        return None
    return view.operator(layer_norm, axis=view.get("axis", -1), epsilon=view.get("epsilon", 1e-5))


def _gemm(view: NodeView) -> nn.Module | None:
    weight, bias = view.tensor(1), view.tensor(2)
    alpha, beta = view.get("alpha", 1.0), view.get("beta", 1.0)
    left, right = bool(view.get("transA", 0)), bool(view.get("transB", 0))
    biased = bias is not None and bias.dim() == 1
    if weight is not None and alpha == beta == 1 and not left and (biased or not view.has(2)):
        return _linear(weight if right else weight.T, bias)
    return view.operator(gemm, alpha=alpha, beta=beta, left=left, right=right)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module | None:
    if bias is not None and len(bias) != len(weight):
        return None
    return with_weights(nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta"), weight, bias)


def _matmul(view: NodeView) -> nn.Module | None:
    weight = view.tensor(1)
    return _linear(weight.T, None) if weight is not None and weight.dim() == 2 else view.operator(torch.matmul)


def _reduce(view: NodeView) -> nn.Module:
    how = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax"}[view.node.op_type]
    keep, noop = view.get("keepdims", 1), view.get("noop_with_empty_axes", 0)
    return view.older_operator(reduce_axes, "axes", how=how, keepdims=keep, noop=noop)


TRANSLATORS: dict[str, Translator] = {
    "Relu": lambda _: nn.ReLU(),
    "LeakyRelu": lambda view: nn.LeakyReLU(view.get("alpha", 0.01)),
    "Sigmoid": lambda _: nn.Sigmoid(),
    "Tanh": lambda _: nn.Tanh(),
    "HardSwish": lambda _: nn.Hardswish(),
    "Elu": lambda view: nn.ELU(view.get("alpha", 1.0)),
    "Softplus": lambda _: nn.Softplus(threshold=80),
    "Mish": lambda _: nn.Mish(),
    "Gelu": lambda view: nn.GELU(view.get("approximate", "none")),
    "HardSigmoid": lambda view: view.operator(hard_sigmoid, alpha=view.get("alpha", 0.2), beta=view.get("beta", 0.5)),
    "Clip": _clip,
    "PRelu": _prelu,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": lambda view: view.operator(instance_norm, epsilon=view.get("epsilon", 1e-5)),
    "LayerNormalization": _layer_norm,
    "Add": plain(torch.add),
    "Sub": plain(torch.sub),
    "Mul": plain(torch.mul),
    "Div": plain(torch.div),
    "Pow": plain(torch.pow),
    "Sum": plain(add_all),
    "Max": plain(maximum),
    "Neg": plain(torch.neg),
    "Exp": plain(torch.exp),
    "Sqrt": plain(torch.sqrt),
    "Erf": plain(torch.erf),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "ReduceMax": _reduce,
}
