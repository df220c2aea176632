"""Fits in the metric of a covariance: exact where they can be, never worse than where they began."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from convsurgeon import fit
from convsurgeon.fit import Blueprint, Normal, Scheme, Separable, Subspace


def _problem(
    outputs: int = 6, channels: int = 5, taps: int = 9, rows: int = 400
) -> tuple[Normal, Tensor, Tensor, Tensor]:
    """Normal equations of a random regression, with its patches, targets and energy."""
    x = torch.randn(rows, channels * taps, dtype=torch.float64) @ torch.randn(45, 45, dtype=torch.float64)
    y = x @ torch.randn(channels * taps, outputs, dtype=torch.float64) + torch.randn(rows, outputs, dtype=torch.float64)
    covariance = (x.T @ x / rows).reshape(channels, taps, channels, taps)
    return Normal(covariance, (y.T @ x / rows).reshape(outputs, channels, taps)), x, y, y.square().mean(0)


@pytest.mark.parametrize("scheme", [Separable(), Blueprint(), Subspace(3)], ids=["separable", "blueprint", "subspace"])
@pytest.mark.parametrize("iterated", [False, True])
def test_no_sweep_makes_a_fit_worse(scheme: Scheme, iterated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if iterated:
        monkeypatch.setattr(fit, "DIRECT_UNKNOWNS", 0)
        monkeypatch.setattr(fit, "DIRECT_MIXINGS", 0)
        monkeypatch.setattr(fit, "CG_STEPS", 40)
    normal, _, _, energy = _problem()
    mixings, windows = scheme.start(fit.regress(normal), 2)
    errors = [float(normal.error(scheme.kernel(mixings, windows), energy).sum())]
    for _ in range(6):
        mixings, windows = fit.alternate(scheme, normal, mixings, windows, 1)
        errors.append(float(normal.error(scheme.kernel(mixings, windows), energy).sum()))
    slack = 1.02 if isinstance(scheme, Subspace) else 1 + 1e-6  # its cut is a projection, not a minimum
    assert all(later <= earlier * slack for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("scheme", [Separable(), Blueprint()], ids=["separable", "blueprint"])
def test_a_kernel_of_the_form_is_found_again(scheme: Scheme) -> None:
    normal, x, _, _ = _problem()
    truth = scheme.kernel(*scheme.start(torch.randn(6, 5, 9, dtype=torch.float64), 2))
    covariance = normal.covariance
    exact = Normal(covariance, (truth.flatten(1) @ covariance.reshape(45, 45)).reshape(6, 5, 9))
    mixings, windows = scheme.start(fit.regress(exact), 2)
    mixings, windows = fit.alternate(scheme, exact, mixings, windows, 3)
    found = scheme.kernel(mixings, windows).flatten(1)
    torch.testing.assert_close(x @ found.T, x @ truth.flatten(1).T, rtol=1e-5, atol=1e-4)


def test_error_is_the_mean_squared_error() -> None:
    normal, x, y, energy = _problem()
    kernel = torch.randn(6, 5, 9, dtype=torch.float64)
    expected = (x @ kernel.flatten(1).T - y).square().mean(0)
    torch.testing.assert_close(normal.error(kernel, energy), expected)


def test_ridge_falls_with_the_number_of_samples_and_survives_nothing() -> None:
    covariance = torch.diag(torch.arange(1.0, 21.0, dtype=torch.float64))
    ridges = [fit.oas_ridge(covariance, samples) for samples in (1_000, 10_000, 100_000)]
    assert ridges[0] > ridges[1] > ridges[2] > 0
    assert fit.oas_ridge(torch.zeros(3, 3), 5) > 0


@pytest.mark.parametrize("singular", [torch.zeros(3, 3), torch.ones(3, 3), torch.diag(torch.tensor([1.0, 0.0, 0.0]))])
def test_singular_systems_are_solved(singular: Tensor) -> None:
    right = singular.double() @ torch.ones(3, 1, dtype=torch.float64)
    torch.testing.assert_close(singular.double() @ fit._solve(singular.double(), right), right, rtol=1e-5, atol=1e-5)
