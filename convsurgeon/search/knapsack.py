r"""The choice of one option per site under limits on their summed costs; numbers only.

The multiple-choice knapsack

    minimise sum_s error[s, option of s]     so that     sum_s cost[s, option of s, j] <= limit_j     for every j

is solved by dynamic programming over the cost, rounded up to a grid (Kellerer, Pferschy & Pisinger 2004, chapter 11).
Several limits are folded into one, a weighted sum of the costs as shares of their limits (surrogate relaxation, Glover
1975), with many weights; every choice that keeps all limits is improved by exchanging single options while that helps,
and the best of them wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convsurgeon.base.arrays import Array

GRID = 4096
"""Steps of the knapsack's cost: rounding up costs at most one step a site, which single exchanges win back."""

_DIRECTIONS = 24
_TIGHTNESS = (1.0, 0.95, 0.87, 0.75)


@dataclass(frozen=True)
class Options:
    """A site's options: `errors` (n,), and `costs` (n, limits)."""

    errors: Array
    costs: Array


def choose(sites: Sequence[Options], limits: Sequence[float]) -> list[int] | None:
    """Return the option of every site, or None where no choice within the limits was found.

    Args:
        sites: what each may become; errors and costs are not negative.
        limits: on the costs, one each.
    """
    bounds = np.asarray(limits, dtype=np.float64)
    if not sites:
        return [] if (bounds >= 0).all() else None
    if (least(sites) > bounds * (1 + 1e-12)).any():
        return None
    best: list[int] | None = None
    for weights in _directions(len(bounds)):
        chosen = _choose_weighted(sites, weights, bounds)
        if chosen is not None and (best is None or error(sites, chosen) < error(sites, best)):
            best = chosen
    return best


def least(sites: Sequence[Options]) -> Array:
    """Return the least sum of each cost, each by itself."""
    return np.asarray(np.sum([site.costs.min(axis=0) for site in sites], axis=0))


def total(sites: Sequence[Options], chosen: Sequence[int]) -> Array:
    """Return the summed costs of a choice."""
    return np.asarray(np.sum([site.costs[option] for site, option in zip(sites, chosen, strict=True)], axis=0))


def error(sites: Sequence[Options], chosen: Sequence[int]) -> float:
    """Return the summed error of a choice."""
    return float(sum(site.errors[option] for site, option in zip(sites, chosen, strict=True)))


def _directions(count: int) -> Array:
    """Return weights of the limits (n, count) with sum 1, spread evenly over the simplex."""
    if count == 1:
        return np.ones((1, 1))
    numbers = np.random.default_rng(0)
    return np.vstack([np.full((1, count), 1 / count), np.eye(count), numbers.dirichlet(np.ones(count), _DIRECTIONS)])


def _choose_weighted(sites: Sequence[Options], weights: Array, bounds: Array) -> list[int] | None:
    """Return the best choice for one weighting, tightened until all limits are kept."""
    for tightness in _TIGHTNESS if len(bounds) > 1 else (1.0,):
        chosen = _knapsack(sites, weights, bounds * tightness)
        chosen = chosen if chosen is not None else _cheapest(sites, weights, bounds)
        if (total(sites, chosen) <= bounds * (1 + 1e-12)).all():
            return _exchange(sites, chosen, bounds)
    return None


def _fold(site: Options, weights: Array, bounds: Array) -> Array:
    """Return one cost (n,) whose limit is 1."""
    return np.asarray(np.minimum(site.costs / np.maximum(bounds, 1e-30), 1e30) @ weights)


def _steps(site: Options, weights: Array, bounds: Array) -> NDArray[np.int64]:
    """Return the folded cost in steps of the grid, rounded up; an option above the limit lies beyond the grid."""
    steps: NDArray[np.int64] = np.ceil(np.minimum(_fold(site, weights, bounds) * GRID, GRID + 1) - 1e-9).astype(
        np.int64
    )
    return steps


def _knapsack(sites: Sequence[Options], weights: Array, bounds: Array) -> list[int] | None:
    """Return the exact optimum of the folded problem on the grid, or None where rounding leaves nothing."""
    best = np.zeros(GRID + 1)
    picks: list[NDArray[np.int64]] = []
    for site in sites:
        steps = _steps(site, weights, bounds)
        table = np.full((len(steps), GRID + 1), np.inf)
        for option, step in enumerate(steps):
            if step <= GRID:
                table[option, step:] = best[: GRID + 1 - step] + site.errors[option]
        picks.append(table.argmin(axis=0))
        best = table.min(axis=0)
    if not np.isfinite(best[GRID]):
        return None
    chosen, room = [], GRID
    for site, pick in zip(reversed(sites), reversed(picks), strict=True):
        option = int(pick[room])
        chosen.append(option)
        room -= int(_steps(site, weights, bounds)[option])
    return chosen[::-1]


def _cheapest(sites: Sequence[Options], weights: Array, bounds: Array) -> list[int]:
    return [int(_fold(site, weights, bounds).argmin()) for site in sites]


def _exchange(sites: Sequence[Options], chosen: list[int], bounds: Array) -> list[int]:
    """Return the choice after every single exchange that lowers the error within the limits, best first."""
    chosen = list(chosen)
    used = total(sites, chosen)
    while True:
        gain, where, what = 0.0, -1, -1
        for index, site in enumerate(sites):
            now = chosen[index]
            fits = (used - site.costs[now] + site.costs <= bounds * (1 + 1e-12)).all(axis=1)
            gains = np.where(fits, site.errors[now] - site.errors, -np.inf)
            if gains.max() > gain:
                gain, where, what = float(gains.max()), index, int(gains.argmax())
        if where < 0:
            return chosen
        used = used - sites[where].costs[chosen[where]] + sites[where].costs[what]
        chosen[where] = what
