"""Fits in the metric of a covariance: exact where they can be, never worse than where they began."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convsurgeon import Blueprint, DepthwiseSeparable, Geometry
from convsurgeon.forms import leastsquares
from convsurgeon.forms.covariance import Whole
from convsurgeon.forms.form import Form
from convsurgeon.forms.systems import solve
from tests.forms.problems import problem


def test_the_cost_is_the_mean_squared_error_in_the_metric() -> None:
    normal, x, y = problem()
    kernel = torch.randn(6, 5, 9, dtype=torch.float64)
    error = x @ kernel.flatten(1).T - y
    expected = float(((error @ normal.metric) * error).sum() / len(x))
    assert normal.cost(kernel) + float((y @ normal.metric * y).sum() / len(y)) == pytest.approx(expected)


def test_ridge_falls_with_the_number_of_samples_and_survives_nothing() -> None:
    covariance = torch.diag(torch.arange(1.0, 21.0, dtype=torch.float64))
    ridges = [leastsquares.oas_ridge(Whole(covariance), samples) for samples in (1_000, 10_000, 100_000)]
    assert ridges[0] > ridges[1] > ridges[2] > 0
    assert leastsquares.oas_ridge(Whole(torch.zeros(3, 3)), 5) > 0


@pytest.mark.parametrize("singular", [torch.zeros(3, 3), torch.ones(3, 3), torch.diag(torch.tensor([1.0, 0.0, 0.0]))])
def test_singular_systems_are_solved(singular: Tensor) -> None:
    right = singular.double() @ torch.ones(3, 1, dtype=torch.float64)
    torch.testing.assert_close(singular.double() @ solve(singular.double(), right), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [DepthwiseSeparable(rank=2), Blueprint(rank=2)])
def test_iterations_reach_what_factoring_does(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    normal, _, _ = problem()
    scheme = form.scheme(Geometry.of(nn.Conv2d(5, 6, 3)))
    start = scheme.start(normal, normal.regress())
    direct = normal.cost(scheme.kernel(scheme.sweep(normal, start)))
    monkeypatch.setattr(leastsquares, "DIRECT_UNKNOWNS", 0)
    iterated = normal.cost(scheme.kernel(scheme.sweep(normal, start)))
    assert iterated == pytest.approx(direct, rel=2e-2)
