"""The knapsack: within its limits always, and as good as trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from convsurgeon.search import knapsack
from convsurgeon.search.knapsack import GRID, Options, choose


def _best(sites: list[Options], limits: np.ndarray) -> float:
    """The least error of all choices within the limits, by trying every one."""
    found = [
        knapsack.error(sites, chosen)
        for chosen in itertools.product(*(range(len(site.errors)) for site in sites))
        if (knapsack.total(sites, chosen) <= limits).all()
    ]
    return min(found, default=float("inf"))


@st.composite
def problems(draw: st.DrawFn, kinds: int) -> tuple[list[Options], np.ndarray]:
    numbers = np.random.default_rng(draw(st.integers(0, 10**6)))
    sites = [
        Options(numbers.random(n := draw(st.integers(1, 5))) ** 3, numbers.random((n, kinds)) * 10)
        for _ in range(draw(st.integers(1, 5)))
    ]
    share = draw(st.floats(0.05, 1.2))
    low, high = knapsack.least(sites), np.sum([site.costs.max(axis=0) for site in sites], axis=0)
    return sites, low + share * (high - low)


@settings(max_examples=100, deadline=None)
@given(problems(kinds=1))
def test_one_limit_is_solved_up_to_the_grid(problem: tuple[list[Options], np.ndarray]) -> None:
    sites, limits = problem
    chosen = choose(sites, list(limits))
    assert chosen is not None
    assert (knapsack.total(sites, chosen) <= limits * (1 + 1e-9)).all()
    assert knapsack.error(sites, chosen) <= _best(sites, limits * (1 - (len(sites) + 1) / GRID)) + 1e-12


@settings(max_examples=40, deadline=None)
@given(problems(kinds=3))
def test_several_limits_are_all_kept(problem: tuple[list[Options], np.ndarray]) -> None:
    sites, limits = problem
    chosen = choose(sites, list(limits))
    if chosen is None:
        return
    assert (knapsack.total(sites, chosen) <= limits * (1 + 1e-9)).all()
    assert knapsack.error(sites, chosen) >= _best(sites, limits * (1 + 1e-9)) - 1e-12


def test_several_limits_are_solved_nearly_as_well_as_by_trying_everything() -> None:
    numbers = np.random.default_rng(0)
    found = []
    for _ in range(40):
        sites = [Options(numbers.random(4), numbers.random((4, 2))) for _ in range(5)]
        limits = knapsack.least(sites) * 2
        chosen, best = choose(sites, list(limits)), _best(sites, limits)
        found.append(np.isinf(best) if chosen is None else knapsack.error(sites, chosen) <= 1.1 * best)
    assert np.mean(found) > 0.85


def test_what_cannot_be_reached_is_refused() -> None:
    assert choose([Options(np.array([0.0, 1.0]), np.array([[5.0], [3.0]]))], [2.0]) is None
    assert choose([Options(np.array([0.0, 1.0]), np.array([[5.0], [3.0]]))], [3.0]) == [1]


def test_no_sites() -> None:
    assert choose([], [1.0]) == []
    assert choose([], [-1.0]) is None


@pytest.mark.parametrize("count", [300])
def test_many_sites_are_planned_in_no_time(count: int) -> None:
    numbers = np.random.default_rng(0)
    sites = [Options(numbers.random(12), numbers.random((12, 1))) for _ in range(count)]
    chosen = choose(sites, [0.3 * count])
    assert chosen is not None
    assert knapsack.total(sites, chosen)[0] <= 0.3 * count
