"""Fits in the metric of a covariance: exact where they can be, never worse than where they began."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from convsurgeon.forms import leastsquares
from convsurgeon.forms.fit_lowrank import Spatial, TuckerTwo
from convsurgeon.forms.leastsquares import Blueprint, Normal, Scheme, Separable, Subspace
from convsurgeon.forms.systems import solve


def _problem(outputs: int = 6, channels: int = 5, taps: int = 9, rows: int = 400) -> tuple[Normal, Tensor, Tensor]:
    """Normal equations of a random regression in a random metric, with its patches and targets."""
    x = torch.randn(rows, channels * taps, dtype=torch.float64) @ torch.randn(45, 45, dtype=torch.float64)
    y = x @ torch.randn(channels * taps, outputs, dtype=torch.float64) + torch.randn(rows, outputs, dtype=torch.float64)
    covariance = (x.T @ x / rows).reshape(channels, taps, channels, taps)
    root = torch.randn(outputs, outputs, dtype=torch.float64)
    return Normal(covariance, (y.T @ x / rows).reshape(outputs, channels, taps), root @ root.T), x, y


SCHEMES: list[Scheme] = [Separable(2), Blueprint(2), Subspace(2, 3), Spatial(4, 3), TuckerTwo(4, 3)]
NAMES = ["separable", "blueprint", "subspace", "spatial", "tucker"]


@pytest.fixture(params=[False, True], ids=["direct", "iterated"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems factored, or all of them iterated on."""
    if request.param:
        monkeypatch.setattr(leastsquares, "DIRECT_UNKNOWNS", 0)
        monkeypatch.setattr(leastsquares, "DIRECT_MIXINGS", 0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("scheme", SCHEMES, ids=NAMES)
def test_no_sweep_makes_a_fit_worse(scheme: Scheme) -> None:
    normal, _, y = _problem()
    factors = scheme.start(normal, normal.regress())
    constant = float((y @ normal.metric * y).sum() / len(y))
    costs = [normal.cost(scheme.kernel(factors)) + constant]
    for _ in range(6):
        factors = leastsquares.alternate(scheme, normal, factors, 1)
        costs.append(normal.cost(scheme.kernel(factors)) + constant)
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(costs))
    assert costs[-1] < costs[0]


@pytest.mark.parametrize("scheme", SCHEMES[:2], ids=["separable", "blueprint"])
def test_iterations_reach_what_factoring_does(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    normal, _, _ = _problem()
    start = scheme.start(normal, normal.regress())
    direct = normal.cost(scheme.kernel(scheme.sweep(normal, start)))
    monkeypatch.setattr(leastsquares, "DIRECT_UNKNOWNS", 0)
    iterated = normal.cost(scheme.kernel(scheme.sweep(normal, start)))
    assert iterated == pytest.approx(direct, rel=2e-2)


EVERY_KERNEL = [SCHEMES[0], SCHEMES[1], SCHEMES[3], SCHEMES[4]]


@pytest.mark.parametrize("scheme", EVERY_KERNEL, ids=[NAMES[0], NAMES[1], NAMES[3], NAMES[4]])
def test_a_metric_lowers_the_error_that_it_measures(scheme: Scheme) -> None:
    normal, _, _ = _problem()
    blind = dataclasses.replace(normal, metric=torch.eye(6, dtype=torch.float64))
    costs = []
    for problem in (normal, blind):
        factors = leastsquares.alternate(scheme, problem, scheme.start(problem, problem.regress()), 8)
        costs.append(normal.cost(scheme.kernel(factors)))
    assert costs[0] < costs[1]


@pytest.mark.parametrize("scheme", EVERY_KERNEL, ids=[NAMES[0], NAMES[1], NAMES[3], NAMES[4]])
def test_a_kernel_of_the_form_is_found_again(scheme: Scheme) -> None:
    normal, x, _ = _problem()
    dense = torch.randn(6, 5, 9, dtype=torch.float64)
    truth = scheme.kernel(scheme.start(normal, dense))
    exact = dataclasses.replace(normal, cross=(truth.flatten(1) @ normal.square).reshape(6, 5, 9))
    found = scheme.kernel(leastsquares.alternate(scheme, exact, scheme.start(exact, exact.regress()), 3)).flatten(1)
    torch.testing.assert_close(x @ found.T, x @ truth.flatten(1).T, rtol=1e-4, atol=1e-2)


def test_the_cost_is_the_mean_squared_error_in_the_metric() -> None:
    normal, x, y = _problem()
    kernel = torch.randn(6, 5, 9, dtype=torch.float64)
    error = x @ kernel.flatten(1).T - y
    expected = float(((error @ normal.metric) * error).sum() / len(x))
    assert normal.cost(kernel) + float((y @ normal.metric * y).sum() / len(y)) == pytest.approx(expected)


def test_ridge_falls_with_the_number_of_samples_and_survives_nothing() -> None:
    covariance = torch.diag(torch.arange(1.0, 21.0, dtype=torch.float64))
    ridges = [leastsquares.oas_ridge(covariance, samples) for samples in (1_000, 10_000, 100_000)]
    assert ridges[0] > ridges[1] > ridges[2] > 0
    assert leastsquares.oas_ridge(torch.zeros(3, 3), 5) > 0


@pytest.mark.parametrize("singular", [torch.zeros(3, 3), torch.ones(3, 3), torch.diag(torch.tensor([1.0, 0.0, 0.0]))])
def test_singular_systems_are_solved(singular: Tensor) -> None:
    right = singular.double() @ torch.ones(3, 1, dtype=torch.float64)
    torch.testing.assert_close(singular.double() @ solve(singular.double(), right), right, rtol=1e-5, atol=1e-5)
