"""The one definition of error: what it is on outputs whose error is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import convsurgeon as cs
from convsurgeon.graph.output_error import FEW, SMALL, OutputError, variances


def _error(*pairs: tuple[list[Tensor], list[Tensor]]) -> float:
    error = OutputError()
    for wanted, found in pairs:
        error.add(wanted, found)
    return error.value


def test_it_is_the_squared_error_over_the_variance_of_every_channel() -> None:
    wanted = torch.randn(10, 3, 8, 8) * torch.tensor([1.0, 1e3, 1e-3]).view(3, 1, 1)
    share = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    deviation = wanted.transpose(0, 1).flatten(1).std(1, correction=0).view(3, 1, 1)
    found = wanted + share * deviation * torch.randn_like(wanted).sign()
    usual = deviation.flatten().square()
    floor = usual.median() * SMALL  # the third channel hardly moves beside the others
    expected = (share.flatten().square() * usual / usual.clamp(min=float(floor))).mean()
    assert _error(([wanted], [found])) == pytest.approx(float(expected), rel=1e-4)


def test_batches_add_up_and_outputs_count_alike() -> None:
    wanted, other = torch.randn(64, 5), torch.randn(64) * 1e6
    found, apart = wanted + 0.1, other + 1e5
    whole = _error(([wanted, other], [found, apart]))
    parts = zip(*(values.split([40, 1, 23]) for values in (wanted, other, found, apart)), strict=True)
    assert _error(*(([a, b], [c, d]) for a, b, c, d in parts)) == pytest.approx(whole, rel=1e-9)
    assert whole == pytest.approx((_error(([wanted], [found])) + _error(([other], [apart]))) / 2)


def test_few_values_share_the_variance_of_the_output() -> None:
    wanted = torch.randn(FEW - 1, 4)
    expected = 0.01 / float(wanted.var(correction=0))
    assert _error(([wanted], [wanted + 0.1])) == pytest.approx(expected, rel=1e-4)


def test_a_dead_channel_does_not_decide() -> None:
    wanted = torch.randn(100, 5)
    wanted[:, 0] = 0
    assert _error(([wanted], [wanted + 0.01])) < 0.001


def test_sizes_of_images_may_differ_from_batch_to_batch() -> None:
    pairs = [torch.randn(4, 3, size, size) for size in (5, 9)]
    assert 0 < _error(*(([one], [one + 0.1]) for one in pairs)) < 0.02
    rows = [torch.randn(4, size, 8) for size in (5, 9)]  # positions along dimension 1
    assert 0 < _error(*(([one], [one + 0.1]) for one in rows)) < 0.02


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_is_infinitely_far(wrong: float) -> None:
    wanted = torch.randn(40, 4)
    assert _error(([wanted], [torch.full_like(wanted, wrong)])) == math.inf


def test_a_constant_output_has_an_error_only_where_it_is_missed() -> None:
    zero = torch.zeros(40, 4)
    assert _error(([zero], [zero])) == 0
    assert _error(([zero], [zero + 1])) == math.inf
    assert _error(([zero + 2], [zero + 1])) == pytest.approx(0.25 / SMALL)


def test_nothing_to_compare_is_an_error_and_so_are_other_sizes() -> None:
    for pairs in ([], [([], [])], [([torch.zeros(0, 4)], [torch.zeros(0, 4)])]):
        with pytest.raises(cs.errors.CalibrationError):
            _error(*pairs)
    with pytest.raises(cs.errors.CalibrationError, match="3x4"):
        _error(([torch.zeros(3, 4)], [torch.zeros(2, 4)]))


def test_a_loss_is_scaled_by_the_same_variances() -> None:
    wanted = torch.randn(100, 5, 2, 2) * torch.arange(1.0, 6).view(5, 1, 1)
    found = wanted + torch.randn_like(wanted)
    (scales,) = variances([[wanted[:50]], [wanted[50:]]])
    loss = ((found - wanted).square().mean((0, 2, 3)) / scales).mean()
    assert float(loss) == pytest.approx(_error(([wanted], [found])), rel=1e-5)
