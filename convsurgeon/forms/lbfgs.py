"""L-BFGS from a starting Hessian that is given, and made anew as the search moves. Tensors only.

Nocedal 1980; Nocedal & Wright 2006, algorithm 7.4, where the starting Hessian may differ from step to step. torch's and
scipy's start from a multiple of the identity, which is slow on factors that are badly scaled together.

Law: the value never rises, since a step is taken only if it lowers it (Armijo's condition).
"""

from __future__ import annotations

from collections import deque
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
_FLAT = 1e-9
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
    solve, memory, scale = hessian(point), deque[tuple[Tensor, Tensor, float]](maxlen=MEMORY), 1.0
    for number in range(1, steps + 1):
        direction = _direction(memory, solve, scale, point.gradient)
        found = _lower(at, point, direction, 1.0 if memory else 0.5)
        if found is None:
            if not memory:
                break
            memory.clear()
            solve, scale = hessian(point), 1.0
            continue
        if number % RENEWED == 0:
            solve = hessian(found)
        moved, turned = found.place - point.place, found.gradient - point.gradient
        curvature = float(moved @ turned)
        if curvature > 0:
            memory.append((moved, turned, 1 / curvature))
            scale = curvature / float(turned @ solve(turned))
        gain, point = point.value - found.value, found
        if gain <= _FLAT * abs(found.value):
            break
    return point


def _direction(memory: deque[tuple[Tensor, Tensor, float]], solve: Solver, scale: float, gradient: Tensor) -> Tensor:
    """Return the direction by the two-loop recursion."""
    vector, weights = gradient.clone(), []
    for moved, turned, inverse in reversed(memory):
        weights.append(float(moved @ vector) * inverse)
        vector.add_(turned, alpha=-weights[-1])
    vector = solve(vector) * scale
    for moved, turned, inverse in memory:
        vector.add_(moved, alpha=weights.pop() - float(turned @ vector) * inverse)
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
