"""Operators that move values and compute none: reshaping, transposing, cutting, joining, padding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsurgeon.onnxnet.modules import Operator
from convsurgeon.onnxnet.operators.node import Ints, NodeView, Translator, to_ints

_MODES = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}


def reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    """Reshape; a size of 0 is the input's own, unless `allowzero`."""
    sizes = to_ints(shape)
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(sizes)])


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Reshape to two axes."""
    axis %= x.dim() + (axis == x.dim())
    return x.reshape(math.prod(x.shape[:axis]), -1)


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Take out axes of size one."""
    return x.squeeze() if axes is None else x.squeeze(to_ints(axes))


def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    """Put in axes of size one, at places of the result."""
    wanted = to_ints(axes)
    for axis in sorted(axis % (x.dim() + len(wanted)) for axis in wanted):
        x = x.unsqueeze(axis)
    return x


def concat(*parts: Tensor, axis: int) -> Tensor:
    """Join values along an axis."""
    return torch.cat(parts, axis)


def split_axis(x: Tensor, sizes: Ints | None = None, *, axis: int = 0, count: int) -> tuple[Tensor, ...]:
    """Cut into parts of some sizes, or `count` equal ones of which the last may be smaller."""
    lengths: Any = -(-x.shape[axis] // count) if sizes is None else to_ints(sizes)
    return tuple(torch.split(x, lengths, axis))


def slice_axes(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    """Cut a part out of some axes; forwards only, as torch does it."""
    first, last = to_ints(starts), to_ints(ends)
    along = list(range(len(first))) if axes is None else to_ints(axes)
    by = [1] * len(first) if steps is None else to_ints(steps)
    for start, end, axis, step in zip(first, last, along, by, strict=True):
        if step < 0:
            raise NotImplementedError("a slice that goes backwards")
        where: list[Any] = [slice(None)] * x.dim()
        where[axis] = slice(start, end, step)
        x = x[tuple(where)]
    return x


def pad(x: Tensor, pads: Ints, value: Any = None, axes: Ints | None = None, *, mode: str = "constant") -> Tensor:
    """Pad any axes with one value, or spatial axes with the input's own."""
    amounts = to_ints(pads)
    along = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in to_ints(axes)]
    ends = zip(amounts[: len(along)], amounts[len(along) :], strict=True)
    both = dict.fromkeys(range(x.dim()), (0, 0)) | dict(zip(along, ends, strict=True))
    if mode == "constant":
        flat = [amount for axis in reversed(range(x.dim())) for amount in both[axis]]
        return F.pad(x, flat, value=0.0 if value is None else float(value))
    if any(any(both[axis]) for axis in (0, 1)):
        raise NotImplementedError("channels padded with their own values")
    flat = [amount for axis in reversed(range(2, x.dim())) for amount in both[axis]]
    return F.pad(x, flat, mode=_MODES[mode])


def depth_to_space(x: Tensor, *, size: int, crd: bool) -> Tensor:
    """Move channels to places, block first or channel first."""
    n, _, h, w = x.shape
    if crd:
        return F.pixel_shuffle(x, size)
    return x.reshape(n, size, size, -1, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * size, w * size)


def copy(*given: Tensor) -> Tensor:
    """Return the first value as another tensor, so that nobody works on the input in place."""
    return given[0] * 1


def constant(value: Tensor) -> Tensor:
    """Return a constant as it is."""
    return value


def cast(x: Tensor, *, dtype: torch.dtype = torch.float32, half: bool = False) -> Tensor:
    """Convert to a type; half precision is float32 here, rounded as the file rounds it."""
    return x.half().float() if half else x.to(dtype)


def _slice(view: NodeView) -> nn.Module:
    if view.opset < 10:
        return view.older_operator(slice_axes, "starts", "ends", "axes")
    return view.operator(slice_axes)


def _reshape(view: NodeView) -> nn.Module:
    """Take a batch size that is written down for that of the input; the builder finds out whether it is."""
    fixed, size = view.constants(), view.shape()[:1]
    shape = fixed.get(1)
    zero = bool(view.get("allowzero", 0)) and (not shape or 0 in shape)
    if shape and not zero and size == (shape[0],):
        fixed[1] = (0, *shape[1:])
    return Operator(reshape, {"allowzero": int(zero)}, fixed)


def _dropout(view: NodeView) -> nn.Module | None:
    if view.outputs > 1 or view.varies(2):
        return None
    return Operator(copy, {}, dict.fromkeys(range(1, len(view.node.input))))


TRANSLATORS: dict[str, Translator] = {
    "Concat": lambda view: view.operator(concat, axis=view.get("axis", 1)),
    "Split": lambda view: view.older_operator(
        split_axis, "split", axis=view.get("axis", 0), count=len(view.node.output)
    ),
    "Pad": lambda view: view.older_operator(pad, "pads", "value", mode=view.get("mode", "constant")),
    "Slice": _slice,
    "Squeeze": lambda view: view.older_operator(squeeze, "axes"),
    "Unsqueeze": lambda view: view.older_operator(unsqueeze, "axes"),
    "Reshape": _reshape,
    "Flatten": lambda view: view.operator(flatten, axis=view.get("axis", 1)),
    "Transpose": lambda view: view.operator(
        torch.permute, dims=tuple(view.get("perm", reversed(range(len(view.shape())))))
    ),
    "DepthToSpace": lambda view: view.operator(
        depth_to_space, size=view.get("blocksize"), crd=view.get("mode", "DCR") == "CRD"
    ),
    "Identity": lambda view: view.operator(copy),
    "Dropout": _dropout,
    "Cast": lambda view: Operator(cast) if view.varies(0) else None,
}
