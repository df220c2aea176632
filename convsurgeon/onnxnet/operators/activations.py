"""Activations and norms: modules of torch wherever there is one, so that the fits know them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from convsurgeon.onnxnet.operators.op import Op, Rule, View, plain


def softmax(x: Tensor, *, axis: int, flat: bool, log: bool) -> Tensor:
    """Before opset 13 all axes from one on together."""
    function = F.log_softmax if log else F.softmax
    if not flat:
        return function(x, axis)
    axis %= x.dim()
    return function(x.reshape(math.prod(x.shape[:axis]), -1), 1).reshape(x.shape)


def clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Within what limits there are."""
    return x * 1 if low is None and high is None else x.clamp(low, high)


def hard_sigmoid(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """A slope between 0 and 1."""
    return (alpha * x + beta).clamp(0, 1)


def instance_norm(x: Tensor, scale: Tensor, shift: Tensor, *, epsilon: float) -> Tensor:
    """Every channel of every image by itself."""
    return F.instance_norm(x, weight=scale, bias=shift, eps=epsilon)


def layer_norm(x: Tensor, scale: Tensor, shift: Any = None, *, axis: int, epsilon: float) -> Tensor:
    """All axes from one on together."""
    return F.layer_norm(x, list(x.shape[axis % x.dim() :]), scale, shift, epsilon)


def _softmax(log: bool) -> Rule:
    def rule(view: View) -> nn.Module:
        late = view.opset >= 13
        return view.op(softmax, axis=view.get("axis", -1 if late else 1), flat=not late, log=log)

    return rule


def _clip(view: View) -> nn.Module | None:
    if (view.has(1) and view.array(1) is None) or (view.has(2) and view.array(2) is None):
        return None
    low, high = (_number(view, place, name) for place, name in ((1, "min"), (2, "max")))
    if low == 0 and high == 6:
        return nn.ReLU6()
    if low is not None and high is not None and low <= high:
        return nn.Hardtanh(low, high)
    return Op(clip, {}, {1: low, 2: high})


def _number(view: View, place: int, name: str) -> float | None:
    array = view.array(place)
    if array is not None:
        return float(array.reshape(-1)[0])
    value = view.get(name)
    return None if value is None or abs(value) > 3e38 else float(value)


def _prelu(view: View) -> nn.Module | None:
    slope = view.tensor(1)
    channels = view.shape()[1] if len(view.shape()) > 1 else 1
    if slope is None or slope.numel() not in (1, channels) or (slope.dim() and slope.shape[0] not in (1, channels)):
        return None
    made = nn.PReLU(slope.numel())
    made.weight = nn.Parameter(slope.reshape(-1).clone(), requires_grad=False)
    return made


def _batch_norm(view: View) -> nn.Module | None:
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


def _layer_norm(view: View) -> nn.Module | None:
    if view.outputs > 1:
        return None
    return view.op(layer_norm, axis=view.get("axis", -1), epsilon=view.get("epsilon", 1e-5))


RULES: dict[str, Rule] = {
    "Relu": lambda _: nn.ReLU(),
    "LeakyRelu": lambda view: nn.LeakyReLU(view.get("alpha", 0.01)),
    "Sigmoid": lambda _: nn.Sigmoid(),
    "Tanh": lambda _: nn.Tanh(),
    "HardSwish": lambda _: nn.Hardswish(),
    "Elu": lambda view: nn.ELU(view.get("alpha", 1.0)),
    "Celu": lambda view: nn.CELU(view.get("alpha", 1.0)),
    "Selu": lambda _: nn.SELU(),
    "Softplus": lambda _: nn.Softplus(threshold=80),
    "Softsign": plain(F.softsign),
    "Mish": lambda _: nn.Mish(),
    "Gelu": lambda view: nn.GELU(view.get("approximate", "none")),
    "HardSigmoid": lambda view: view.op(hard_sigmoid, alpha=view.get("alpha", 0.2), beta=view.get("beta", 0.5)),
    "Clip": _clip,
    "PRelu": _prelu,
    "Softmax": _softmax(log=False),
    "LogSoftmax": _softmax(log=True),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": lambda view: view.op(instance_norm, epsilon=view.get("epsilon", 1e-5)),
    "LayerNormalization": _layer_norm,
}
