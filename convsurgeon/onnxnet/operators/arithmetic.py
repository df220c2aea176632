"""Sums, products, reductions, matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.onnxnet.operators.op import Ints, Rule, View, ints, plain


def reduce(x: Tensor, axes: Ints | None = None, *, how: str, keepdims: int = 1, noop: int = 0) -> Tensor:
    """Over some axes, or all of them, or none if `noop`."""
    along = [] if axes is None else ints(axes)
    if not along and noop:
        return x * 1
    along = along or list(range(x.dim()))
    keep = bool(keepdims)
    if how == "l2":
        return x.square().sum(along, keepdim=keep).sqrt()
    made: Tensor = getattr(torch, how)(x, along, keepdim=keep)
    return made


def gemm(a: Tensor, b: Tensor, c: Any = None, *, alpha: float, beta: float, left: bool, right: bool) -> Tensor:
    """`alpha a b + beta c`, either factor turned."""
    product = alpha * ((a.T if left else a) @ (b.T if right else b))
    return product if c is None else product + beta * c


def total(*parts: Tensor) -> Tensor:
    """Sum of all."""
    made = parts[0] * 1
    for part in parts[1:]:
        made = made + part
    return made


def mean(*parts: Tensor) -> Tensor:
    """Of all."""
    return total(*parts) / len(parts)


def largest(*parts: Tensor) -> Tensor:
    """Of all, place by place."""
    made = parts[0] * 1
    for part in parts[1:]:
        made = torch.maximum(made, part)
    return made


def smallest(*parts: Tensor) -> Tensor:
    """Of all, place by place."""
    return -largest(*(-part for part in parts))


def _gemm(view: View) -> nn.Module | None:
    weight, bias = view.tensor(1), view.tensor(2)
    alpha, beta = view.get("alpha", 1.0), view.get("beta", 1.0)
    left, right = bool(view.get("transA", 0)), bool(view.get("transB", 0))
    plain_one = alpha == 1 and beta == 1 and not left and weight is not None
    if plain_one and weight is not None and (not view.has(2) or (bias is not None and bias.dim() == 1)):
        return _linear(weight if right else weight.T, bias)
    return view.op(gemm, alpha=alpha, beta=beta, left=left, right=right)


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
    return _linear(weight.T, None) if weight is not None and weight.dim() == 2 else view.op(torch.matmul)


def _reduce(how: str) -> Rule:
    def rule(view: View) -> nn.Module:
        keep, noop = view.get("keepdims", 1), view.get("noop_with_empty_axes", 0)
        return view.old(reduce, "axes", how=how, keepdims=keep, noop=noop)

    return rule


RULES: dict[str, Rule] = {
    "Add": plain(torch.add),
    "Sub": plain(torch.sub),
    "Mul": plain(torch.mul),
    "Div": plain(torch.div),
    "Pow": plain(torch.pow),
    "Sum": plain(total),
    "Mean": plain(mean),
    "Max": plain(largest),
    "Min": plain(smallest),
    "Abs": plain(torch.abs),
    "Neg": plain(torch.neg),
    "Exp": plain(torch.exp),
    "Log": plain(torch.log),
    "Sqrt": plain(torch.sqrt),
    "Reciprocal": plain(torch.reciprocal),
    "Erf": plain(torch.erf),
    "Sin": plain(torch.sin),
    "Cos": plain(torch.cos),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "ReduceMax": _reduce("amax"),
    "ReduceMin": _reduce("amin"),
    "ReduceL2": _reduce("l2"),
}
