"""Which module of torch stands for a node, as far as its attributes and constants say; no rule, no translation.

A rule may be generous: what it makes is compared with onnxruntime before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, helper
from torch import Tensor, nn

from convsurgeon.onnxnet.ops import Op
from convsurgeon.onnxnet.runtime import Array, to_torch
from convsurgeon.onnxnet.values import Values

Rule = Callable[["View"], nn.Module | None]


@dataclass(frozen=True)
class View:
    """One node and what is known of what it reads."""

    node: NodeProto
    values: Values
    opset: int

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; bytes as text."""
        for item in self.node.attribute:
            if item.name == name:
                value = helper.get_attribute_value(item)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def array(self, place: int) -> Array | None:
        """A constant input, None where it is none or not there."""
        return self.values.array(self.node.input[place]) if place < len(self.node.input) else None

    def tensor(self, place: int) -> Tensor | None:
        """A constant input as torch has it."""
        array = self.array(place)
        return None if array is None else to_torch(array)

    def has(self, place: int) -> bool:
        """Whether an input is there."""
        return place < len(self.node.input) and bool(self.node.input[place])

    def shape(self, place: int = 0) -> tuple[int, ...]:
        """Of an input on the example."""
        return self.values.shape(self.node.input[place]) or ()

    def constants(self) -> dict[int, Any]:
        """Fixed inputs by position: floating point as tensors, whole numbers as a tuple, None for what is left out."""
        found: dict[int, Any] = {}
        for place, name in enumerate(self.node.input):
            array = self.values.array(name)
            if not name:
                found[place] = None
            elif array is not None:
                found[place] = to_torch(array) if array.dtype.kind == "f" else tuple(array.reshape(-1).tolist())
        return found


def _op(kind: str, view: View, **settings: Any) -> Op:
    return Op(kind, settings, view.constants())


def _plain(kind: str) -> Rule:
    return lambda view: _op(kind, view)


def _module(make: Callable[[View], nn.Module]) -> Rule:
    return lambda view: make(view)


def _old(kind: str, *names: str) -> Rule:
    """An operator whose inputs were attributes once, of these names, from the second input on."""

    def rule(view: View) -> nn.Module | None:
        fixed = view.constants()
        for place, name in enumerate(names, start=1):
            if not view.has(place):
                value = view.get(name)
                fixed[place] = tuple(value) if isinstance(value, list) else value
        while fixed and fixed.get(max(fixed)) is None and max(fixed) >= len(view.node.input):
            del fixed[max(fixed)]
        return Op(kind, {}, fixed)

    return rule


def _clip(view: View) -> nn.Module | None:
    if (view.has(1) and view.array(1) is None) or (view.has(2) and view.array(2) is None):
        return None
    low, high = (_number(view, place, name) for place, name in ((1, "min"), (2, "max")))
    if low == 0 and high == 6:
        return nn.ReLU6()
    if low is not None and high is not None and low <= high:
        return nn.Hardtanh(low, high)
    return Op("clip", {}, {1: low, 2: high})


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
    outputs = [name for name in view.node.output if name]
    if len(view.shape()) != 4 or len(outputs) != 1 or view.get("training_mode", 0):
        return None
    if scale is None or shift is None or mean is None or variance is None:
        return None
    made = nn.BatchNorm2d(len(mean), eps=view.get("epsilon", 1e-5))
    made.weight, made.bias = (nn.Parameter(one.clone(), requires_grad=False) for one in (scale, shift))
    made.running_mean, made.running_var = mean.clone(), variance.clone()
    made.num_batches_tracked = None
    made.track_running_stats = False  # the file keeps its statistics: nobody takes new ones
    return made


def _max_pool(view: View) -> nn.Module | None:
    if len([name for name in view.node.output if name]) > 1 or view.get("storage_order", 0):
        return None
    return Op("max_pool", {**_window(view), "dilation": tuple(view.get("dilations", [1] * _dims(view)))})


def _average_pool(view: View) -> nn.Module | None:
    return Op("average_pool", {**_window(view), "counted": bool(view.get("count_include_pad", 0))})


def _dims(view: View) -> int:
    return len(view.shape()) - 2


def _window(view: View) -> dict[str, Any]:
    dims = _dims(view)
    same = view.get("auto_pad", "NOTSET")
    return {
        "kernel": tuple(view.get("kernel_shape")),
        "stride": tuple(view.get("strides", [1] * dims)),
        "pads": tuple(view.get("pads", [0] * 2 * dims)) if same == "NOTSET" else (0,) * (2 * dims),
        "ceil": bool(view.get("ceil_mode", 0)),
        "same": same if same.startswith("SAME") else "",
    }


def _gemm(view: View) -> nn.Module | None:
    weight, bias = view.tensor(1), view.tensor(2)
    alpha, beta = view.get("alpha", 1.0), view.get("beta", 1.0)
    left, right = bool(view.get("transA", 0)), bool(view.get("transB", 0))
    plain = alpha == 1 and beta == 1 and not left and weight is not None
    if plain and weight is not None and (not view.has(2) or (bias is not None and bias.dim() == 1)):
        return _linear(weight if right else weight.T, bias)
    return _op("gemm", view, alpha=alpha, beta=beta, left=left, right=right)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module | None:
    if bias is not None and len(bias) != len(weight):
        return None
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.contiguous().clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.clone())
    return made


def _matmul(view: View) -> nn.Module | None:
    weight = view.tensor(1)
    return _linear(weight.T, None) if weight is not None and weight.dim() == 2 else _op("matmul", view)


def _conv_transpose(view: View) -> nn.Module | None:
    weight, bias = view.tensor(1), view.tensor(2)
    dims = _dims(view)
    if weight is None or (view.has(2) and bias is None) or dims not in (1, 2, 3) or view.get("output_shape"):
        return None
    pads, groups = view.get("pads", [0] * 2 * dims), view.get("group", 1)
    if view.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or pads[:dims] != pads[dims:]:
        return None
    kind: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    made = kind(
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(weight.shape[2:]),
        stride=tuple(view.get("strides", [1] * dims)),
        padding=tuple(pads[:dims]),
        output_padding=tuple(view.get("output_padding", [0] * dims)),
        groups=groups,
        bias=bias is not None,
        dilation=tuple(view.get("dilations", [1] * dims)),
        device="meta",
    )
    return filled(made, weight, bias)


def filled(conv: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A conv with its weights."""
    conv.weight = nn.Parameter(weight.clone())
    conv.bias = None if bias is None else nn.Parameter(bias.clone())
    assert isinstance(conv, nn.Module)
    return conv


def _softmax(log: bool) -> Rule:
    def rule(view: View) -> nn.Module | None:
        late = view.opset >= 13
        return _op("softmax", view, axis=view.get("axis", -1 if late else 1), flat=not late, log=log)

    return rule


def _reduce(how: str) -> Rule:
    def rule(view: View) -> nn.Module | None:
        made = _old("reduce", "axes")(view)
        assert isinstance(made, Op)
        made.settings = {
            "how": how,
            "keepdims": view.get("keepdims", 1),
            "noop": view.get("noop_with_empty_axes", 0),
        }
        return made

    return rule


def _split(view: View) -> nn.Module | None:
    made = _old("split", "split")(view)
    assert isinstance(made, Op)
    made.settings = {"axis": view.get("axis", 0), "count": len(view.node.output)}
    return made


def _pad(view: View) -> nn.Module | None:
    made = _old("pad", "pads", "value")(view)
    assert isinstance(made, Op)
    made.settings = {"mode": view.get("mode", "constant")}
    return made


def _slice(view: View) -> nn.Module | None:
    return _old("slice", "starts", "ends", "axes")(view) if view.opset < 10 else _op("slice", view)


def _resize(view: View) -> nn.Module | None:
    if view.get("antialias", 0) or view.get("axes") is not None:
        return None
    fixed = view.constants()
    if view.node.op_type == "Upsample" and view.opset < 9:
        fixed = {1: None, 2: tuple(view.get("scales"))}
    elif view.opset < 11:  # scales stood where the region of interest stands now
        fixed = {1: None, 2: fixed[1]} if 1 in fixed else {1: None}
    transform = view.get("coordinate_transformation_mode", "half_pixel" if view.opset >= 11 else "asymmetric")
    nearest = view.get("nearest_mode", "round_prefer_floor" if view.opset >= 11 else "floor")
    return Op("resize", {"mode": view.get("mode", "nearest"), "transform": transform, "nearest": nearest}, fixed)


def _reshape(view: View) -> nn.Module | None:
    """A batch size that is written down is that of the input, whatever it is: so far as that goes is found out."""
    fixed, size = view.constants(), view.shape()[:1]
    shape = fixed.get(1)
    zero = bool(view.get("allowzero", 0)) and (not shape or 0 in shape)
    if shape and not zero and size == (shape[0],):
        fixed[1] = (0, *shape[1:])
    return Op("reshape", {"allowzero": int(zero)}, fixed)


def _layer_norm(view: View) -> nn.Module | None:
    if len([name for name in view.node.output if name]) > 1:
        return None
    return _op("layer_norm", view, axis=view.get("axis", -1), epsilon=view.get("epsilon", 1e-5))


def _gather(view: View) -> nn.Module | None:
    index = view.array(1)
    fixed = {} if index is None else {1: to_torch(np.asarray(index, dtype=np.int64))}
    return Op("gather", {"axis": view.get("axis", 0)}, fixed) if view.array(0) is None else None


def _transpose(view: View) -> nn.Module | None:
    axes = len(view.shape())
    return _op("transpose", view, perm=tuple(view.get("perm", list(reversed(range(axes))))))


def _dropout(view: View) -> nn.Module | None:
    if len([name for name in view.node.output if name]) > 1 or (view.has(2) and view.array(2) is None):
        return None
    return Op("nothing", {}, dict.fromkeys(range(1, len(view.node.input))))


def _cast(view: View) -> nn.Module | None:
    return Op("cast") if view.array(0) is None else None


def _expand(view: View) -> nn.Module | None:
    return _op("expand", view)


RULES: dict[str, Rule] = {
    "Relu": _module(lambda _: nn.ReLU()),
    "LeakyRelu": _module(lambda view: nn.LeakyReLU(view.get("alpha", 0.01))),
    "Sigmoid": _module(lambda _: nn.Sigmoid()),
    "Tanh": _module(lambda _: nn.Tanh()),
    "HardSwish": _module(lambda _: nn.Hardswish()),
    "Elu": _module(lambda view: nn.ELU(view.get("alpha", 1.0))),
    "Celu": _module(lambda view: nn.CELU(view.get("alpha", 1.0))),
    "Selu": _module(lambda _: nn.SELU()),
    "Softplus": _module(lambda _: nn.Softplus(threshold=80)),
    "Mish": _module(lambda _: nn.Mish()),
    "Gelu": _module(lambda view: nn.GELU(view.get("approximate", "none"))),
    "HardSigmoid": lambda view: _op("hard_sigmoid", view, alpha=view.get("alpha", 0.2), beta=view.get("beta", 0.5)),
    "Clip": _clip,
    "PRelu": _prelu,
    "BatchNormalization": _batch_norm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda view: _op("global", view, largest=False),
    "GlobalMaxPool": lambda view: _op("global", view, largest=True),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "ConvTranspose": _conv_transpose,
    "Softmax": _softmax(log=False),
    "LogSoftmax": _softmax(log=True),
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "ReduceMax": _reduce("amax"),
    "ReduceMin": _reduce("amin"),
    "ReduceL2": _reduce("l2"),
    "Concat": lambda view: _op("concat", view, axis=view.get("axis", 1)),
    "Split": _split,
    "Pad": _pad,
    "Slice": _slice,
    "Squeeze": _old("squeeze", "axes"),
    "Unsqueeze": _old("unsqueeze", "axes"),
    "Reshape": _reshape,
    "Flatten": lambda view: _op("flatten", view, axis=view.get("axis", 1)),
    "Transpose": _transpose,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": lambda view: _op(
        "depth_to_space", view, size=view.get("blocksize"), crd=view.get("mode", "DCR") == "CRD"
    ),
    "SpaceToDepth": lambda view: _op("space_to_depth", view, size=view.get("blocksize")),
    "InstanceNormalization": lambda view: _op("instance_norm", view, epsilon=view.get("epsilon", 1e-5)),
    "LayerNormalization": _layer_norm,
    "Gather": _gather,
    "Expand": _expand,
    "Identity": _plain("nothing"),
    "Dropout": _dropout,
    "Cast": _cast,
    **{name: _plain(name.lower()) for name in ("Add", "Sub", "Mul", "Div", "Pow", "Sum", "Mean", "Max", "Min")},
    **{name: _plain(name.lower()) for name in ("Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Sin", "Cos")},
    "Softsign": _plain("softsign"),
}


def places(node: NodeProto, module: nn.Module) -> Sequence[str]:
    """The inputs that a module is called with: those that are not fixed."""
    if isinstance(module, Op):
        return [name for place, name in enumerate(node.input) if name and place not in module.fixed]
    return [name for name in node.input[:1] if name]


_BOUNDED = ("Sigmoid", "HardSigmoid", "Tanh", "Softmax")
"""Operators that the runtime approximates to so much of 1, however small all of their values are."""


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
