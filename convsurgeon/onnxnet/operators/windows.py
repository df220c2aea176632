"""What runs a window over an image: margins, pools, transposed convs, resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from convsurgeon.onnxnet.operators.op import Op, Rule, View, ints


def same_pads(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """How much `auto_pad=SAME_*` adds along every axis, both ends together."""
    windows = zip(size, kernel, stride, dilation, strict=True)
    return [
        max(0, (-(-length // step) - 1) * step + (k - 1) * apart + 1 - length) for length, k, step, apart in windows
    ]


def same(x: Tensor, *, kernel: Sequence[int], stride: Any, dilation: Any, lower: bool, value: float = 0.0) -> Tensor:
    """The margin of `auto_pad=SAME_UPPER` or `SAME_LOWER`, which goes with the size of what is padded."""
    flat: list[int] = []
    for total in reversed(same_pads(x.shape[2:], kernel, stride, dilation)):
        small, large = total // 2, total - total // 2
        flat += [large, small] if lower else [small, large]
    return F.pad(x, flat, value=value) if any(flat) else x * 1


def margin(x: Tensor, *, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """`pads` as ONNX has them: all beginnings, then all ends, of the spatial axes."""
    half = len(pads) // 2
    flat = [amount for axis in reversed(range(half)) for amount in (pads[axis], pads[axis + half])]
    return F.pad(x, flat, value=value)


def max_pool(x: Tensor, *, kernel: Any, stride: Any, pads: Any, dilation: Any, ceil: bool, auto: str) -> Tensor:
    """Largest of every window; a margin is below everything."""
    x = _padded(x, kernel, stride, dilation, pads, auto, -math.inf)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.dim() - 3]
    return pool(x, kernel, stride, 0, dilation, ceil_mode=ceil)


def average_pool(x: Tensor, *, kernel: Any, stride: Any, pads: Any, ceil: bool, auto: str, counted: bool) -> Tensor:
    """With what the margin adds counted or not, as the file says."""
    ones = (1,) * len(kernel)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.dim() - 3]
    wide = _padded(x, kernel, stride, ones, pads, auto, 0.0)
    summed = pool(wide, kernel, stride, 0, ceil_mode=ceil)
    if counted or wide.shape == x.shape:
        return summed
    inside = _padded(x[:1, :1] * 0 + 1, kernel, stride, ones, pads, auto, 0.0)
    return summed / pool(inside, kernel, stride, 0, ceil_mode=ceil)


def _padded(x: Tensor, kernel: Any, stride: Any, dilation: Any, pads: Any, auto: str, value: float) -> Tensor:
    if auto:
        return same(x, kernel=kernel, stride=stride, dilation=dilation, lower=auto == "SAME_LOWER", value=value)
    return margin(x, pads=pads, value=value) if any(pads) else x


def global_pool(x: Tensor, *, largest: bool) -> Tensor:
    """Of all places at once."""
    axes = list(range(2, x.dim()))
    return x.amax(axes, keepdim=True) if largest else x.mean(axes, keepdim=True)


def resize(
    x: Tensor, _region: Any, scales: Any, sizes: Any = None, *, mode: str, transform: str, nearest: str
) -> Tensor:
    """In the few ways that torch has, too."""
    if sizes is not None and len(ints(sizes)):
        wanted = ints(sizes)[2:]
    else:
        factors = [float(value) for value in (scales.tolist() if isinstance(scales, Tensor) else scales)][2:]
        wanted = [math.floor(length * factor) for length, factor in zip(x.shape[2:], factors, strict=True)]
    if mode == "nearest":
        exact = transform == "half_pixel" and nearest in ("round_prefer_floor", "round_prefer_ceil", "floor")
        return F.interpolate(x, wanted, mode="nearest-exact" if exact else "nearest")
    corners = transform == "align_corners"
    names = {"linear": ("linear", "bilinear", "trilinear")[x.dim() - 3], "cubic": "bicubic"}
    return F.interpolate(x, wanted, mode=names[mode], align_corners=corners)


def filled(conv: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A conv with its weights."""
    conv.weight = nn.Parameter(weight.clone())
    conv.bias = None if bias is None else nn.Parameter(bias.clone())
    assert isinstance(conv, nn.Module)
    return conv


def _max_pool(view: View) -> nn.Module | None:
    if view.outputs > 1 or view.get("storage_order", 0):
        return None
    return Op(max_pool, {**_window(view), "dilation": tuple(view.get("dilations", [1] * view.dims))})


def _average_pool(view: View) -> nn.Module:
    return Op(average_pool, {**_window(view), "counted": bool(view.get("count_include_pad", 0))})


def _window(view: View) -> dict[str, Any]:
    dims, word = view.dims, view.get("auto_pad", "NOTSET")
    return {
        "kernel": tuple(view.get("kernel_shape")),
        "stride": tuple(view.get("strides", [1] * dims)),
        "pads": tuple(view.get("pads", [0] * 2 * dims)) if word == "NOTSET" else (0,) * (2 * dims),
        "ceil": bool(view.get("ceil_mode", 0)),
        "auto": word if word.startswith("SAME") else "",
    }


def _conv_transpose(view: View) -> nn.Module | None:
    weight, bias, dims = view.tensor(1), view.tensor(2), view.dims
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
    return Op(resize, {"mode": view.get("mode", "nearest"), "transform": transform, "nearest": nearest}, fixed)


RULES: dict[str, Rule] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda view: view.op(global_pool, largest=False),
    "GlobalMaxPool": lambda view: view.op(global_pool, largest=True),
    "ConvTranspose": _conv_transpose,
    "Resize": _resize,
    "Upsample": _resize,
}
