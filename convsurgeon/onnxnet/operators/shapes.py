"""What moves values about and computes none: reshaping, turning, cutting, joining, margins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsurgeon.onnxnet.engine import to_torch
from convsurgeon.onnxnet.operators.op import Ints, Op, Rule, View, ints


def reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    """`0` is the input's own size, unless `allowzero`."""
    sizes = ints(shape)
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(sizes)])


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """To two axes."""
    axis %= x.dim() + (axis == x.dim())
    return x.reshape(math.prod(x.shape[:axis]), -1)


def transpose(x: Tensor, *, perm: Sequence[int]) -> Tensor:
    """Axes in another order."""
    return x.permute(*perm)


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Without axes of size one."""
    return x.squeeze() if axes is None else x.squeeze(ints(axes))


def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    """With axes of size one, at places of the result."""
    wanted = ints(axes)
    for axis in sorted(axis % (x.dim() + len(wanted)) for axis in wanted):
        x = x.unsqueeze(axis)
    return x


def concat(*parts: Tensor, axis: int) -> Tensor:
    """One after the other."""
    return torch.cat(parts, axis)


def split(x: Tensor, sizes: Ints | None = None, *, axis: int = 0, count: int) -> tuple[Tensor, ...]:
    """Into `count` equal parts, the last one smaller, where no sizes are given."""
    lengths: Any = -(-x.shape[axis] // count) if sizes is None else ints(sizes)
    return tuple(torch.split(x, lengths, axis))


def slice_(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    """Forwards only, as torch does it."""
    first, last = ints(starts), ints(ends)
    along = list(range(len(first))) if axes is None else ints(axes)
    by = [1] * len(first) if steps is None else ints(steps)
    for start, end, axis, step in zip(first, last, along, by, strict=True):
        if step < 0:
            raise NotImplementedError("a slice that goes backwards")
        where: list[Any] = [slice(None)] * x.dim()
        where[axis] = slice(start, end, step)
        x = x[tuple(where)]
    return x


def pad(x: Tensor, pads: Ints, value: Any = None, axes: Ints | None = None, *, mode: str = "constant") -> Tensor:
    """Margins of any axes filled with one value; others of spatial axes only."""
    amounts = ints(pads)
    along = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in ints(axes)]
    ends = zip(amounts[: len(along)], amounts[len(along) :], strict=True)
    both = dict.fromkeys(range(x.dim()), (0, 0)) | dict(zip(along, ends, strict=True))
    if mode == "constant":
        flat = [amount for axis in reversed(range(x.dim())) for amount in both[axis]]
        return F.pad(x, flat, value=0.0 if value is None else float(value))
    if any(any(both[axis]) for axis in (0, 1)):
        raise NotImplementedError("a margin around channels")
    flat = [amount for axis in reversed(range(2, x.dim())) for amount in both[axis]]
    return F.pad(x, flat, mode={"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode])


def depth_to_space(x: Tensor, *, size: int, crd: bool) -> Tensor:
    """Channels to places, block first or channel first."""
    n, _, h, w = x.shape
    if crd:
        return F.pixel_shuffle(x, size)
    return x.reshape(n, size, size, -1, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * size, w * size)


def space_to_depth(x: Tensor, *, size: int) -> Tensor:
    """Places to channels, block first."""
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // size, size, w // size, size)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // size, w // size)


def gather(x: Tensor, index: Any, *, axis: int) -> Tensor:
    """Rows of an axis; negative indices count from its end."""
    if not isinstance(index, Tensor):
        raise NotImplementedError("an index that is no tensor")
    index = torch.where(index < 0, index + x.shape[axis], index)
    return x.index_select(axis, index.reshape(-1)).reshape(
        *x.shape[:axis], *index.shape, *x.shape[axis % x.dim() + 1 :]
    )


def expand(x: Tensor, shape: Ints) -> Tensor:
    """To a larger shape, or with more axes."""
    return x * torch.ones(ints(shape), dtype=x.dtype, device=x.device)


def copied(*given: Tensor) -> Tensor:
    """The same, but another tensor, so that nobody works on its input in place."""
    return given[0] * 1


def stored(value: Tensor) -> Tensor:
    """A constant as it is."""
    return value


def cast(x: Tensor) -> Tensor:
    """To the one floating-point type that networks compute in here."""
    return x.to(torch.float32)


def _split(view: View) -> nn.Module:
    return view.old(split, "split", axis=view.get("axis", 0), count=len(view.node.output))


def _slice(view: View) -> nn.Module:
    return view.old(slice_, "starts", "ends", "axes") if view.opset < 10 else view.op(slice_)


def _reshape(view: View) -> nn.Module:
    """A batch size that is written down is that of the input, whatever it is: so far as that goes is found out."""
    fixed, size = view.constants(), view.shape()[:1]
    shape = fixed.get(1)
    zero = bool(view.get("allowzero", 0)) and (not shape or 0 in shape)
    if shape and not zero and size == (shape[0],):
        fixed[1] = (0, *shape[1:])
    return Op(reshape, {"allowzero": int(zero)}, fixed)


def _gather(view: View) -> nn.Module | None:
    index = view.array(1)
    fixed = {} if index is None else {1: to_torch(np.asarray(index, dtype=np.int64))}
    return Op(gather, {"axis": view.get("axis", 0)}, fixed) if view.array(0) is None else None


def _transpose(view: View) -> nn.Module:
    return view.op(transpose, perm=tuple(view.get("perm", list(reversed(range(len(view.shape())))))))


def _dropout(view: View) -> nn.Module | None:
    if view.outputs > 1 or (view.has(2) and view.array(2) is None):
        return None
    return Op(copied, {}, dict.fromkeys(range(1, len(view.node.input))))


def _cast(view: View) -> nn.Module | None:
    return Op(cast) if view.array(0) is None else None


def _depth_to_space(view: View) -> nn.Module:
    return view.op(depth_to_space, size=view.get("blocksize"), crd=view.get("mode", "DCR") == "CRD")


RULES: dict[str, Rule] = {
    "Concat": lambda view: view.op(concat, axis=view.get("axis", 1)),
    "Split": _split,
    "Pad": lambda view: view.old(pad, "pads", "value", mode=view.get("mode", "constant")),
    "Slice": _slice,
    "Squeeze": lambda view: view.old(squeeze, "axes"),
    "Unsqueeze": lambda view: view.old(unsqueeze, "axes"),
    "Reshape": _reshape,
    "Flatten": lambda view: view.op(flatten, axis=view.get("axis", 1)),
    "Transpose": _transpose,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": lambda view: view.op(space_to_depth, size=view.get("blocksize")),
    "Gather": _gather,
    "Expand": lambda view: view.op(expand),
    "Identity": lambda view: view.op(copied),
    "Dropout": _dropout,
    "Cast": _cast,
}
