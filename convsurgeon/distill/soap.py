"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas, Morwani, Zhao et al. 2024, arXiv:2409.11321).

SOAP keeps a moving average of `G G^T` along every axis of a kernel and scales the gradient's entries in the
eigenvectors of these. The factors of a rewritten conv are multiplied with nothing between them, so their entries hang
together, which Adam cannot see.

Directions in which a gradient is almost zero hold rounding errors, and scaling them up like the others would take two
processes far from where one goes. So, unlike in the paper, the bases are continuous functions of the gradients: they
begin at the identity and move by power iterations of the products plus a share `SHIFT` of their mean eigenvalue; and
roots are compared with the largest of their kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

SHIFT = 0.1
"""Of the mean eigenvalue, added to all of them when a basis moves."""
FIRST = 5
"""Power iterations that the first basis is found by."""
LONGEST = 1024
"""Axes that are longer get no basis: to find it would take longer than the step."""


class Soap(Optimizer):
    """Adam in slowly moving eigenbases; vectors, such as biases, get plain Adam.

    The first step only looks, as in the authors' code: it takes a basis from the first gradient and moves nothing. All
    averages have the parameter's type, as those of torch's Adam; decompositions are made in float64.

    Args:
        params: to be trained, or groups of them.
        lr: learning rate; those that suit Adam suit it, too.
        betas: decays of the averages of the gradient, and of its squares and products.
        eps: least root of the squares that counts in full, as a share of the kernel's largest.
        every: steps from one basis to the next, each by one power iteration and a QR decomposition.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-4,
        every: int = 10,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "every": every})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel():
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = 0
            state["mean"], state["squares"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
            state["products"] = [None if product is None else (1 - beta2) * product for product in _products(gradient)]
            state["bases"] = [
                None if product is None else torch.eye(len(product), dtype=product.dtype, device=product.device)
                for product in state["products"]
            ]
            for _ in range(FIRST):
                _follow(state)
            return
        state["step"] += 1
        bases = state["bases"]
        state["mean"].lerp_(gradient, 1 - beta1)
        state["squares"].lerp_(_turned(gradient, bases).square(), 1 - beta2)
        roots = state["squares"].sqrt()
        ahead = _turned(state["mean"], bases) / (roots + group["eps"] * roots.max()).clamp_min(
            torch.finfo(roots.dtype).tiny
        )
        rate = group["lr"] * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        parameter.add_(_turned(ahead, bases, back=True), alpha=-rate)
        for product, new in zip(state["products"], _products(gradient), strict=True):
            if product is not None:
                product.lerp_(new, 1 - beta2)
        if state["step"] % group["every"] == 0:
            _follow(state)


def _products(gradient: Tensor) -> list[Tensor | None]:
    """Return `G G^T` along every axis, (n, n) for an axis of n; None for an axis that gets no basis.

    An axis longer than the others together gets none: a gradient says nothing about most of its directions, so rounding
    would choose among them, and two processes would soon be far from one.
    """
    found: list[Tensor | None] = []
    for axis, length in enumerate(gradient.shape):
        if 1 < length <= min(LONGEST, gradient.numel() // length):
            flat = gradient.movedim(axis, 0).flatten(1)
            found.append(flat @ flat.T)
        else:
            found.append(None)
    return found


def _turned(tensor: Tensor, bases: list[Tensor | None], back: bool = False) -> Tensor:
    """Return the tensor in the bases of its axes, or back from there."""
    for basis in bases:
        if basis is None:
            tensor = tensor.movedim(0, -1)
        else:
            tensor = torch.tensordot(tensor, basis, dims=([0], [1 if back else 0]))
    return tensor


def _follow(state: dict[str, Any]) -> None:
    """Turn every basis towards the eigenvectors that the products have now."""
    for axis, (product, basis) in enumerate(zip(state["products"], state["bases"], strict=True)):
        if product is not None:
            wide, turned = product.double(), basis.double()
            ahead = wide @ turned + SHIFT * wide.diagonal().mean() * turned
            state["bases"][axis] = torch.linalg.qr(ahead).Q.to(basis.dtype)
