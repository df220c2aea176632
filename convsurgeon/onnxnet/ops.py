"""What operators of ONNX compute, in functions of torch: the inputs in ONNX's order, the attributes by name.

Nobody takes their word for it: every node is compared with onnxruntime on the example before it is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convsurgeon.onnxnet.leaf import Leaf

Ints = Sequence[int] | Tensor


class Op(Leaf):
    """One operator.

    Args:
        kind: its name in `FUNCTIONS`.
        settings: attributes.
        constants: inputs that are fixed, by position; None for one that is left out.
    """

    def __init__(self, kind: str, settings: dict[str, Any] | None = None, constants: dict[int, Any] | None = None):
        super().__init__()
        self.kind, self.settings = kind, dict(settings or {})
        self.fixed: dict[int, Any] = {}
        for place, value in (constants or {}).items():
            self.fixed[place] = f"constant{place}" if isinstance(value, Tensor) else value
            if isinstance(value, Tensor):
                self.register_buffer(f"constant{place}", value, persistent=False)

    def forward(self, *given: Any) -> Any:
        """The inputs that are not fixed, in order."""
        rest = iter(given)
        args = [self._fixed(place) if place in self.fixed else next(rest) for place in range(self._places(given))]
        return FUNCTIONS[self.kind](*args, **self.settings)

    def _places(self, given: Sequence[Any]) -> int:
        return len(given) + len(self.fixed)

    def _fixed(self, place: int) -> Any:
        value = self.fixed[place]
        return getattr(self, value) if isinstance(value, str) else value

    def extra_repr(self) -> str:
        """What it is, for whoever prints the network."""
        return f"{self.kind}, {self.settings}" if self.settings else self.kind


def _ints(values: Ints) -> list[int]:
    """Whole numbers that were fixed, or are computed."""
    return [int(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]


def _reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    sizes = _ints(shape)
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(sizes)])


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis %= x.dim() + (axis == x.dim())
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(x: Tensor, *, perm: Sequence[int]) -> Tensor:
    return x.permute(*perm)


def _squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(_ints(axes))


def _unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    wanted = _ints(axes)
    for axis in sorted(axis % (x.dim() + len(wanted)) for axis in wanted):
        x = x.unsqueeze(axis)
    return x


def _concat(*parts: Tensor, axis: int) -> Tensor:
    return torch.cat(parts, axis)


def _split(x: Tensor, sizes: Ints | None = None, *, axis: int = 0, count: int) -> tuple[Tensor, ...]:
    lengths: Any = -(-x.shape[axis] // count) if sizes is None else _ints(sizes)
    return tuple(torch.split(x, lengths, axis))


def _slice(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    first, last = _ints(starts), _ints(ends)
    along = list(range(len(first))) if axes is None else _ints(axes)
    by = [1] * len(first) if steps is None else _ints(steps)
    for start, end, axis, step in zip(first, last, along, by, strict=True):
        if step < 0:
            raise NotImplementedError("a slice that goes backwards")
        where: list[Any] = [slice(None)] * x.dim()
        where[axis] = slice(start, end, step)
        x = x[tuple(where)]
    return x


def _pad(x: Tensor, pads: Ints, value: Any = None, axes: Ints | None = None, *, mode: str = "constant") -> Tensor:
    amounts = _ints(pads)
    along = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in _ints(axes)]
    ends = zip(amounts[: len(along)], amounts[len(along) :], strict=True)
    both = dict.fromkeys(range(x.dim()), (0, 0)) | dict(zip(along, ends, strict=True))
    if mode == "constant":
        flat = [amount for axis in reversed(range(x.dim())) for amount in both[axis]]
        return F.pad(x, flat, value=0.0 if value is None else float(value))
    if any(any(both[axis]) for axis in (0, 1)):
        raise NotImplementedError("a margin around channels")
    flat = [amount for axis in reversed(range(2, x.dim())) for amount in both[axis]]
    return F.pad(x, flat, mode={"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode])


def same_pads(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """How much `auto_pad=SAME_*` adds along every axis, both ends together."""
    windows = zip(size, kernel, stride, dilation, strict=True)
    return [
        max(0, (-(-length // step) - 1) * step + (k - 1) * apart + 1 - length) for length, k, step, apart in windows
    ]


def _same(x: Tensor, *, kernel: Sequence[int], stride: Any, dilation: Any, lower: bool, value: float = 0.0) -> Tensor:
    """The margin of `auto_pad=SAME_UPPER` or `SAME_LOWER`, which goes with the size of what is padded."""
    flat: list[int] = []
    for total in reversed(same_pads(x.shape[2:], kernel, stride, dilation)):
        small, large = total // 2, total - total // 2
        flat += [large, small] if lower else [small, large]
    return F.pad(x, flat, value=value) if any(flat) else x * 1


def _margin(x: Tensor, *, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """`pads` as ONNX has them: all beginnings, then all ends, of the spatial axes."""
    half = len(pads) // 2
    flat = [amount for axis in reversed(range(half)) for amount in (pads[axis], pads[axis + half])]
    return F.pad(x, flat, value=value)


def _max_pool(x: Tensor, *, kernel: Any, stride: Any, pads: Any, dilation: Any, ceil: bool, same: str) -> Tensor:
    x = _padded(x, kernel, stride, dilation, pads, same, -math.inf)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.dim() - 3]
    return pool(x, kernel, stride, 0, dilation, ceil_mode=ceil)


def _average_pool(x: Tensor, *, kernel: Any, stride: Any, pads: Any, ceil: bool, same: str, counted: bool) -> Tensor:
    """With what the margin adds counted or not, as the file says."""
    ones = (1,) * len(kernel)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.dim() - 3]
    wide = _padded(x, kernel, stride, ones, pads, same, 0.0)
    summed = pool(wide, kernel, stride, 0, ceil_mode=ceil)
    if counted or wide.shape == x.shape:
        return summed
    inside = _padded(torch.ones_like(x[:1, :1]), kernel, stride, ones, pads, same, 0.0)
    return summed / pool(inside, kernel, stride, 0, ceil_mode=ceil)


def _padded(x: Tensor, kernel: Any, stride: Any, dilation: Any, pads: Any, same: str, value: float) -> Tensor:
    if same:
        return _same(x, kernel=kernel, stride=stride, dilation=dilation, lower=same == "SAME_LOWER", value=value)
    return _margin(x, pads=pads, value=value) if any(pads) else x


def _global(x: Tensor, *, largest: bool) -> Tensor:
    axes = list(range(2, x.dim()))
    return x.amax(axes, keepdim=True) if largest else x.mean(axes, keepdim=True)


def _reduce(x: Tensor, axes: Ints | None = None, *, how: str, keepdims: int = 1, noop: int = 0) -> Tensor:
    along = [] if axes is None else _ints(axes)
    if not along and noop:
        return x
    along = along or list(range(x.dim()))
    keep = bool(keepdims)
    if how == "l2":
        return x.square().sum(along, keepdim=keep).sqrt()
    made: Tensor = getattr(torch, how)(x, along, keepdim=keep)
    return made


def _softmax(x: Tensor, *, axis: int, flat: bool, log: bool) -> Tensor:
    """Before opset 13 all axes from one on together."""
    function = F.log_softmax if log else F.softmax
    if not flat:
        return function(x, axis)
    axis %= x.dim()
    return function(x.reshape(math.prod(x.shape[:axis]), -1), 1).reshape(x.shape)


def _gemm(a: Tensor, b: Tensor, c: Any = None, *, alpha: float, beta: float, left: bool, right: bool) -> Tensor:
    product = alpha * ((a.T if left else a) @ (b.T if right else b))
    return product if c is None else product + beta * c


def _resize(
    x: Tensor, _region: Any, scales: Any, sizes: Any = None, *, mode: str, transform: str, nearest: str
) -> Tensor:
    if sizes is not None and len(_ints(sizes)):
        wanted = _ints(sizes)[2:]
    else:
        factors = [float(value) for value in (scales.tolist() if isinstance(scales, Tensor) else scales)][2:]
        wanted = [math.floor(length * factor) for length, factor in zip(x.shape[2:], factors, strict=True)]
    if mode == "nearest":
        exact = transform == "half_pixel" and nearest in ("round_prefer_floor", "round_prefer_ceil", "floor")
        return F.interpolate(x, wanted, mode="nearest-exact" if exact else "nearest")
    corners = transform == "align_corners"
    names = {"linear": ("linear", "bilinear", "trilinear")[x.dim() - 3], "cubic": "bicubic"}
    return F.interpolate(x, wanted, mode=names[mode], align_corners=corners)


def _depth_to_space(x: Tensor, *, size: int, crd: bool) -> Tensor:
    n, _, h, w = x.shape
    if crd:
        return F.pixel_shuffle(x, size)
    return x.reshape(n, size, size, -1, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * size, w * size)


def _space_to_depth(x: Tensor, *, size: int) -> Tensor:
    n, c, h, w = x.shape
    return (
        x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // size, w // size)
    )


def _instance_norm(x: Tensor, scale: Tensor, shift: Tensor, *, epsilon: float) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=shift, eps=epsilon)


def _layer_norm(x: Tensor, scale: Tensor, shift: Any = None, *, axis: int, epsilon: float) -> Tensor:
    return F.layer_norm(x, list(x.shape[axis % x.dim() :]), scale, shift, epsilon)


def _clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    return x if low is None and high is None else x.clamp(low, high)


def _gather(x: Tensor, index: Any, *, axis: int) -> Tensor:
    if not isinstance(index, Tensor):
        raise NotImplementedError("an index that is no tensor")
    index = torch.where(index < 0, index + x.shape[axis], index)
    return x.index_select(axis, index.reshape(-1)).reshape(
        *x.shape[:axis], *index.shape, *x.shape[axis % x.dim() + 1 :]
    )


def _expand(x: Tensor, shape: Ints) -> Tensor:
    return x * torch.ones(_ints(shape), dtype=x.dtype, device=x.device)


def _nothing(*given: Tensor) -> Tensor:
    """A copy, so that nobody works on its input in place."""
    return given[0] * 1


def _cast(x: Tensor) -> Tensor:
    return x.to(torch.float32)


def _mean(*parts: Tensor) -> Tensor:
    return _sum(*parts) / len(parts)


def _sum(*parts: Tensor) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _largest(*parts: Tensor) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = torch.maximum(total, part)
    return total


def _smallest(*parts: Tensor) -> Tensor:
    return -_largest(*(-part for part in parts))


def _hard_sigmoid(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _constant(value: Tensor) -> Tensor:
    return value


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "constant": _constant,
    "reshape": _reshape,
    "flatten": _flatten,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "concat": _concat,
    "split": _split,
    "slice": _slice,
    "pad": _pad,
    "same": _same,
    "margin": _margin,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "global": _global,
    "reduce": _reduce,
    "softmax": _softmax,
    "gemm": _gemm,
    "resize": _resize,
    "depth_to_space": _depth_to_space,
    "space_to_depth": _space_to_depth,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "clip": _clip,
    "gather": _gather,
    "expand": _expand,
    "nothing": _nothing,
    "cast": _cast,
    "sum": _sum,
    "mean": _mean,
    "max": _largest,
    "min": _smallest,
    "hard_sigmoid": _hard_sigmoid,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "matmul": torch.matmul,
    "abs": torch.abs,
    "neg": torch.neg,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "softsign": F.softsign,
}
