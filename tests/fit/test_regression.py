"""A covariance is the same matrix, and a regression the same kernel, however many rows there are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from convsurgeon.fit import regression
from convsurgeon.fit.regression import MomentSum, Regression, few
from convsurgeon.forms.covariance import FewRows, Whole
from convsurgeon.forms.leastsquares import DOUBLE_UNKNOWNS

WIDE = DOUBLE_UNKNOWNS + 40


@settings(max_examples=80)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.floats(0, 10), st.integers(0, 1 << 30))
def test_few_rows_are_the_matrix_that_they_make(rows: int, channels: int, taps: int, ridge: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, matrix = (torch.randn(size, channels * taps, generator=generator, dtype=torch.float64) for size in (rows, 5))
    thin, whole = FewRows(x).with_ridge(ridge), Whole(x.T @ x).with_ridge(ridge)
    torch.testing.assert_close(thin.values, whole.values)
    torch.testing.assert_close(thin.times(matrix), whole.times(matrix))
    for one, two in zip(thin.marginals(taps), whole.marginals(taps), strict=True):
        torch.testing.assert_close(one, two)
    assert thin.size() == pytest.approx(whole.size())


@settings(max_examples=80)
@given(st.integers(1, 8), st.integers(2, 30), st.floats(0.01, 10), st.integers(0, 1 << 30))
def test_errors_of_few_rows_are_taken_away_as_by_the_whole_system(
    rows: int, unknowns: int, ridge: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, errors = (torch.randn(rows, size, generator=generator, dtype=torch.float64) for size in (unknowns, 3))
    thin = FewRows(x).with_ridge(ridge)
    wanted = torch.linalg.solve(thin.values, x.T @ errors).T
    torch.testing.assert_close(thin.regress(errors), wanted, rtol=1e-6, atol=1e-8)


def _wide(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    scale = torch.logspace(0, -2, WIDE)
    patches = torch.randn(rows, WIDE, generator=generator) * scale + 1
    target, kernel = torch.randn(rows, 7, generator=generator), torch.randn(7, WIDE, generator=generator) / WIDE
    return patches, target, kernel.double()


def test_the_regression_on_few_rows_is_that_on_the_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, target, kernel = _wide(60)
    center = patches.mean(0).double()
    thin = Regression(patches, center)
    monkeypatch.setattr(regression, "few", lambda *_: False)
    whole = Regression(patches, center)
    assert isinstance(thin.covariance, FewRows)
    assert isinstance(whole.covariance, Whole)
    torch.testing.assert_close(thin.covariance.values, whole.covariance.values, rtol=1e-4, atol=1e-5)
    for one, two in zip(thin.regress(target, kernel), whole.regress(target, kernel), strict=True):
        assert float((one - two).norm() / two.norm()) < 1e-3
    assert float((thin.regress(target, kernel)[1] - kernel).norm() / kernel.norm()) > 0.01  # the data say something


@pytest.mark.parametrize("parts", [(30, 30), (700, 1, 40)])
def test_second_moments_come_bit_by_bit_whichever_way_they_are_held(parts: tuple[int, ...]) -> None:
    rows = [torch.randn(size, 2, WIDE) for size in parts]
    gathering = MomentSum(2, WIDE)
    for part in rows:
        gathering.add(part)
    found, count = gathering.covariances(rows[0])
    every = torch.cat(rows)
    assert count == sum(parts)
    assert {type(one) for one in found} == {FewRows if few(count, WIDE) else Whole}
    for group, covariance in enumerate(found):
        expected = every[:, group].T @ every[:, group] / math.fsum(parts)
        torch.testing.assert_close(covariance.values, expected, rtol=1e-3, atol=1e-4)


def test_no_patches_at_all_have_an_empty_covariance() -> None:
    found, count = MomentSum(1, 3).covariances(torch.zeros(1))
    assert (count, float(found[0].values.abs().sum())) == (0, 0.0)


def test_narrow_sites_and_many_rows_are_multiplied_out() -> None:
    assert few(100, 25_088)
    assert not few(100, DOUBLE_UNKNOWNS)
    assert not few(13_000, 25_088)
