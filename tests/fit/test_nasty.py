"""Real weights are not tidy: dead, constant, tiny channels, kernels of any size. Fits stand it, or say what is so."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.forms.systems import eigen, roots

X = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))
HALF = (torch.arange(26) < 13).float()[:, None, None]
INPUTS = {
    "plain": torch.ones(26, 1, 1),
    "half dead": HALF,
    "half noise": HALF + (1 - HALF) * 1e-15,
    "half huge": HALF + (1 - HALF) * 1e12,
    "all dead": torch.zeros(26, 1, 1),
    "tiny": torch.full((26, 1, 1), 1e-20),
}
FORMS = {
    "cp": cs.CP(rank=16),
    "separable": cs.DepthwiseSeparable(rank=2),
    "blueprint": cs.Blueprint(rank=2),
    "subspace": cs.BlueprintSubspace(rank=1),
    "lowrank": cs.LowRank(rank=8),
}


class _Net(nn.Module):
    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("factor", factor)
        self.stem = nn.Conv2d(3, 26, 3, padding=1)
        self.body, self.point = nn.Conv2d(26, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.head = nn.Conv2d(32, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)) * self.factor
        x = torch.relu(self.point(torch.relu(self.body(x))))
        return self.head(x) * torch.tensor([1.0])  # made while it runs


def _converted(net: _Net, form: str) -> cs.Result:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*images are few")
        return cs.convert(
            net.eval(), X[:1], forms=[FORMS[form]], calibration=X, policy=cs.select.everything(), progress=False
        )


def _rotated(values: Iterable[str]) -> list[Any]:
    """Every value with two of the forms, so that each form meets several; with the others in the long sweep."""
    forms = list(FORMS)
    return [
        pytest.param(value, form, marks=() if (place - index) % len(forms) in (0, 2) else pytest.mark.slow)
        for index, value in enumerate(values)
        for place, form in enumerate(forms)
    ]


@pytest.mark.parametrize(("inputs", "form"), _rotated(INPUTS))
def test_fits_stand_dead_and_disparate_channels(inputs: str, form: str) -> None:
    done = _converted(_Net(INPUTS[inputs]), form).report.reconstruction
    assert done.sites
    assert done.error_after <= done.error_before


@pytest.mark.filterwarnings("ignore:subnormal")
@pytest.mark.parametrize(("kernel", "form"), _rotated(["zero", "one zero", "rank two", "1e-38", "1e-20"]))
def test_fits_stand_kernels_of_any_size_and_rank(kernel: str, form: str) -> None:
    net = _Net(INPUTS["plain"])
    with torch.no_grad():
        if kernel == "zero":
            net.body.weight.zero_()
        elif kernel == "one zero":
            net.body.weight[3] = 0
        elif kernel == "rank two":
            net.body.weight.copy_((torch.randn(32, 2) @ torch.randn(2, 26 * 9)).reshape(32, 26, 3, 3))
        else:
            net.body.weight *= float(kernel)
    done = _converted(net, form).report.reconstruction
    assert done.error_after <= done.error_before


@pytest.mark.parametrize("form", ["cp", "separable", "lowrank"])
def test_what_cannot_be_squared_is_said_to_be_too_large(form: str) -> None:
    net = _Net(INPUTS["plain"])
    with torch.no_grad():
        net.body.weight *= 1e37
    with pytest.warns(UserWarning, match=re.escape("too large to fit to in float32; its weights stay as they are")):
        done = _converted(net, form).report.reconstruction
    assert done.error_after <= done.error_before
    budget = cs.Budget(macs=0.6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = cs.convert(net, X[:1], goal=budget, calibration=X, policy=cs.select.everything(), progress=False)
    assert result.report.after.macs <= 0.6 * result.report.before.macs


@pytest.mark.parametrize("value", [1.4073694881711352e-15, 0.0, 1e-38, 1e30, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvectors_of_whatever_matrix(value: float, dtype: torch.dtype) -> None:
    """LAPACK's float32 driver returns NaN for the first."""
    matrix = torch.full((13, 13), value, dtype=dtype)
    values, vectors = eigen(matrix)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(13, dtype=dtype), atol=1e-5, rtol=0)
    assert values[-1] == pytest.approx(13 * value, rel=1e-4)
    assert all(root.isfinite().all() for root in roots(matrix))


def test_a_matrix_that_is_not_finite_is_refused() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        eigen(torch.full((3, 3), torch.nan))
