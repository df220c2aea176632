"""L-BFGS from a starting Hessian that is given, and made anew as the search moves. Tensors only.

Nocedal 1980; Nocedal & Wright 2006, algorithm 7.4, where the starting Hessian may differ from step to step. torch's and
scipy's start from a multiple of the identity, which is slow on factors that are badly scaled together.

Law: the value never rises, since a step is taken only if it lowers it (Armijo's condition).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

MEMORY = 30
RENEWED = 5
"""Steps after which the starting Hessian is made anew."""

_HALVINGS = 12
_ARMIJO = 1e-4
_FLAT = {torch.float64: 1e-9, torch.float32: 1e-6}
"""Relative decrease under which a step is the last."""


@dataclass(frozen=True)
class Iterate:
    """A place (n,) in a search, the value there, which is minimised, and its gradient (n,)."""

    place: Tensor
    value: float
    gradient: Tensor


P = TypeVar("P", bound=Iterate)
Solver = Callable[[Tensor], Tensor]
"""Multiplies a vector (n,) by the inverse of a starting Hessian."""


def minimise(at: Callable[[Tensor], P], hessian: Callable[[P], Solver], point: P, steps: int) -> P:
    """Return a lower point, at most so many steps away; `hessian` gives a solver with the starting one at a point."""
    solve, memory, scale = hessian(point), _Memory(min(MEMORY, steps), point.place), 1.0
    for number in range(1, steps + 1):
        direction = memory.direction(solve, scale, point.gradient)
        found = _lower(at, point, direction, 1.0 if memory.count else 0.5)
        if found is None:
            if not memory.count:
                break
            solve, scale, memory.count = hessian(point), 1.0, 0
            continue
        if number % RENEWED == 0:
            solve = hessian(found)
        moved, turned = found.place - point.place, found.gradient - point.gradient
        curvature = float(moved @ turned)
        if curvature > 0:
            memory.add(moved, turned)
            scale = curvature / float(turned @ solve(turned))
        gain, point = point.value - found.value, found
        if gain <= _FLAT[point.place.dtype] * abs(found.value):
            break
    return point


class _Memory:
    """The last steps (m, n) and how the gradient turned on each; `products[i, j]` is step i times turn j, for j >= i.

    The two-loop recursion as two triangular systems (m, m): a few products of matrices in place of 4 m of vectors.
    """

    def __init__(self, size: int, like: Tensor) -> None:
        self.count = 0
        self._moved, self._turned = (like.new_empty(size, len(like)) for _ in range(2))
        self._products = like.new_zeros(size, size)

    def add(self, moved: Tensor, turned: Tensor) -> None:
        """Add a step, and forget the oldest where there is no room."""
        if self.count == len(self._moved):
            for kept in (self._moved, self._turned):
                kept[:-1] = kept[1:].clone()
            self._products[:-1, :-1] = self._products[1:, 1:].clone()
            self.count -= 1
        self._moved[self.count], self._turned[self.count] = moved, turned
        self.count += 1
        self._products[: self.count, self.count - 1] = self._moved[: self.count] @ turned

    def direction(self, solve: Solver, scale: float, gradient: Tensor) -> Tensor:
        if not self.count:
            return solve(gradient) * -scale
        moved, turned = self._moved[: self.count], self._turned[: self.count]
        upper = self._products[: self.count, : self.count]
        weights = torch.linalg.solve_triangular(upper, (moved @ gradient)[:, None], upper=True)[:, 0]
        vector = solve(gradient - turned.T @ weights) * scale
        right = upper.diagonal() * weights - turned @ vector
        vector += moved.T @ torch.linalg.solve_triangular(upper.T, right[:, None], upper=False)[:, 0]
        return -vector


def _lower(at: Callable[[Tensor], P], point: P, direction: Tensor, step: float) -> P | None:
    """Return the first point along a direction, by halving, that is lower enough, or None."""
    slope = float(point.gradient @ direction)
    for _ in range(_HALVINGS):
        found = at(point.place + step * direction)
        if found.value <= point.value + _ARMIJO * step * slope:
            return found
        step /= 2
    return None


def flat(parts: tuple[Tensor, ...]) -> Tensor:
    """Return tensors as one vector."""
    return torch.cat([part.flatten() for part in parts])
