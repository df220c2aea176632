"""Operators that run a window over an image: pools, resizing."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.modules import Operator
from convsurgeon.onnxnet.operators.node import NodeView, Translator, to_ints
from convsurgeon.onnxnet.padding import Padding


def max_pool(x: Tensor, *, kernel: Any, padding: Padding, dilation: Any, ceil: bool) -> Tensor:
    """Take the largest value of every window; padding is below everything."""
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.dim() - 3]
    return pool(padding.add(x, -math.inf), kernel, padding.strides, 0, dilation, ceil_mode=ceil)


def average_pool(x: Tensor, *, kernel: Any, padding: Padding, ceil: bool, counted: bool) -> Tensor:
    """Average every window, with what the padding adds counted or not."""
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.dim() - 3]
    wide = padding.add(x)
    averaged = pool(wide, kernel, padding.strides, 0, ceil_mode=ceil)
    if counted or wide.shape == x.shape:
        return averaged
    return averaged / pool(padding.add(x[:1, :1] * 0 + 1), kernel, padding.strides, 0, ceil_mode=ceil)


def global_pool(x: Tensor, *, largest: bool) -> Tensor:
    """Average all places, or take the largest."""
    axes = list(range(2, x.dim()))
    return x.amax(axes, keepdim=True) if largest else x.mean(axes, keepdim=True)


def resize_image(
    x: Tensor, _region: Any, scales: Any, sizes: Any = None, *, mode: str, transform: str, nearest: str
) -> Tensor:
    """Resize in the few ways that torch has, too."""
    if sizes is not None and len(to_ints(sizes)):
        wanted = to_ints(sizes)[2:]
    else:
        factors = [float(value) for value in (scales.tolist() if isinstance(scales, Tensor) else scales)][2:]
        wanted = [math.floor(length * factor) for length, factor in zip(x.shape[2:], factors, strict=True)]
    if mode == "nearest":
        exact = transform == "half_pixel" and nearest in ("round_prefer_floor", "round_prefer_ceil", "floor")
        return F.interpolate(x, wanted, mode="nearest-exact" if exact else "nearest")
    names = {"linear": ("linear", "bilinear", "trilinear")[x.dim() - 3], "cubic": "bicubic"}
    return F.interpolate(x, wanted, mode=names[mode], align_corners=transform == "align_corners")


def _window(view: NodeView) -> dict[str, Any]:
    kernel = tuple(view.get("kernel_shape"))
    padding = Padding.of(proto.attributes(view.node), kernel)
    return {"kernel": kernel, "padding": padding, "ceil": bool(view.get("ceil_mode", 0))}


def _max_pool(view: NodeView) -> nn.Module | None:
    if view.outputs > 1 or view.get("storage_order", 0):
        return None
    return Operator(max_pool, {**_window(view), "dilation": tuple(view.get("dilations", [1] * view.dims))})


def _resize(view: NodeView) -> nn.Module | None:
    if view.get("antialias", 0) or view.get("axes") is not None:
        return None
    fixed = view.constants()
    if view.node.op_type == "Upsample" and view.opset < 9:
        fixed = {1: None, 2: tuple(view.get("scales"))}
    elif view.opset < 11:  # scales stood where the region of interest stands now
        fixed = {1: None, 2: fixed[1]} if 1 in fixed else {1: None}
    transform = view.get("coordinate_transformation_mode", "half_pixel" if view.opset >= 11 else "asymmetric")
    nearest = view.get("nearest_mode", "round_prefer_floor" if view.opset >= 11 else "floor")
    return Operator(
        resize_image, {"mode": view.get("mode", "nearest"), "transform": transform, "nearest": nearest}, fixed
    )


TRANSLATORS: dict[str, Translator] = {
    "MaxPool": _max_pool,
    "AveragePool": lambda view: Operator(
        average_pool, {**_window(view), "counted": bool(view.get("count_include_pad", 0))}
    ),
    "GlobalAveragePool": lambda view: view.operator(global_pool, largest=False),
    "GlobalMaxPool": lambda view: view.operator(global_pool, largest=True),
    "Resize": _resize,
    "Upsample": _resize,
}
