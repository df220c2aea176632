"""CP's search: slopes that are right, and the start of a wide layer, which is right where its metric comes apart."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from convsurgeon.forms import cpfit
from convsurgeon.forms.covariance import Whole
from convsurgeon.forms.cpfit import CPFit, _Between, _Problem
from convsurgeon.forms.lbfgs import flat
from convsurgeon.forms.leastsquares import Normal
from tests.forms.problems import problem

RANK = 4


def _apart() -> Normal:
    """A problem whose covariance is a product of one of channels and one of taps."""
    normal, _, _ = problem()
    channels, taps = (torch.randn(size, size, dtype=torch.float64) for size in (5, 9))
    covariance = torch.einsum("cd,kl->ckdl", channels @ channels.T, taps @ taps.T)
    kernel = torch.randn(6, 5, 9, dtype=torch.float64)
    cross = torch.einsum("ock,ckdl->odl", kernel, covariance)
    spread = Whole(covariance.reshape(kernel[0].numel(), -1))
    return replace(normal, spread=spread, cross=cross, regression=kernel)


def _place() -> Tensor:
    return flat((torch.randn(RANK, 5, dtype=torch.float64), torch.randn(RANK, 9, dtype=torch.float64)))


@pytest.mark.parametrize("seed", range(3))
def test_slopes_are_those_of_the_values(seed: int) -> None:
    torch.manual_seed(seed)
    normal, _, _ = problem()
    for searched in (_Problem(normal, normal.regress(), RANK), _Between.of(normal, normal.regress())):
        place, step = _place(), 1e-5 * torch.randn(RANK * 14, dtype=torch.float64)
        ahead, behind = searched.at(place + step), searched.at(place - step)
        slope = 2 * float(searched.at(place).gradient @ step)  # both leave the factor 2 of a square out
        assert ahead.value - behind.value == pytest.approx(2 * slope, rel=1e-4)


def test_between_the_roots_is_the_problem_where_channels_and_taps_come_apart() -> None:
    normal = _apart()
    between, whole = _Between.of(normal, normal.regress()), _Problem(normal, normal.regress(), RANK)
    reduce, window = _place().split([RANK * 5, RANK * 9])
    inside = between.at(flat((reduce, window)))
    outside = between.outside(inside.parts)
    there = whole.at(flat(outside[:2]))
    energy = -normal.cost(normal.regress())
    assert inside.value / float(between.kernel.square().sum()) == pytest.approx(there.value / energy, rel=1e-5)
    fit = CPFit(RANK)
    torch.testing.assert_close(fit.kernel(outside), fit.kernel(there.parts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("apart", [False, True])
def test_a_wide_layer_starts_lower(apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    normal = _apart() if apart else problem()[0]
    fit = CPFit(RANK)
    narrow = normal.cost(fit.kernel(fit.start(normal, normal.regress())))
    monkeypatch.setattr(_Problem, "scarce", True)
    start = fit.start(normal, normal.regress())
    assert normal.cost(fit.kernel(start)) < narrow
    assert normal.cost(fit.kernel(fit.sweep(normal, start))) <= normal.cost(fit.kernel(start))


def test_what_ranks_share_is_of_one_kernel() -> None:
    normal, _, _ = problem()
    dense = normal.regress()
    assert _Between.of(normal, dense) is _Between.of(normal, dense)
    other = _Between.of(normal, 2 * dense)
    torch.testing.assert_close(other.kernel, 2 * _Between.of(normal, dense).kernel)


def test_which_layers_are_wide() -> None:
    def layer(channels: int, rank: int) -> _Problem:
        dense = torch.zeros(1, channels, 9)
        return _Problem(Normal(Whole(torch.zeros(1, 1)), dense, torch.zeros(1)), dense, rank)

    assert not layer(64, 256).scarce
    assert layer(512, 128).scarce
    assert layer(512, 512).steps == cpfit._LEAST_STEPS
    assert layer(1024, 1024).steps == cpfit._LEAST_OF_WIDEST


@pytest.mark.parametrize("smallest", [1e-2, 1e-8])
def test_the_search_in_float32_ends_as_low(smallest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where directions of the patches hardly vary, and with factors in the problem's own precision."""
    torch.manual_seed(0)
    channels, outputs, rank = 32, 24, 12
    width = channels * 9
    turn = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]
    spread = turn * torch.logspace(0, math.log10(smallest), width, dtype=torch.float64) @ turn.T
    kernel, metric = torch.randn(outputs, channels, 9, dtype=torch.float64), torch.eye(outputs, dtype=torch.float64)
    cross = (kernel.flatten(1) @ spread).unflatten(1, (channels, 9))
    costs = []
    for least in (0, width + 1):
        monkeypatch.setattr(cpfit, "SEARCHED_IN_SINGLE", least)
        normal, fit = Normal(Whole(spread), cross, metric, kernel), CPFit(rank)
        start = fit.start(normal, kernel)
        found = fit.sweep(normal, start)
        assert found[0].dtype == torch.float64
        costs.append(normal.cost(fit.kernel(found)))
        assert costs[-1] < normal.cost(fit.kernel(start))
    energy = -normal.cost(kernel)
    assert (costs[0] + energy) / (costs[1] + energy) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("scarce", [False, True])
def test_a_problem_is_let_go_with_its_last_user(scarce: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A circle would keep the covariance of a wide layer, 85 MB and several of that size, until Python collects."""
    monkeypatch.setattr(_Problem, "scarce", scarce)
    normal, _, _ = problem()
    fit, held = CPFit(RANK), weakref.ref(normal.spread.values)
    gc.collect()
    gc.disable()
    try:
        factors = fit.sweep(normal, fit.start(normal, normal.regress()))
        del normal, factors
        assert held() is None
    finally:
        gc.enable()
