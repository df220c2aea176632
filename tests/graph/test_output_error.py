"""The one definition of error: what it is on outputs whose error is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import convsurgeon as cs
from convsurgeon.graph.output_error import SMALL, OutputError, relative_error, scales


def _error(*pairs: tuple[list[Tensor], list[Tensor]]) -> float:
    error = OutputError()
    for wanted, found in pairs:
        error.add(wanted, found)
    return error.value


def _noise(like: Tensor, share: float = 0.1) -> Tensor:
    """Return noise of a share of every element's deviation from image to image."""
    return share * like.std(0, keepdim=True) * torch.randn_like(like).sign()


def test_it_is_the_squared_error_over_the_variance_of_every_channel() -> None:
    torch.manual_seed(0)
    wanted = torch.randn(400, 3, 8, 8) * torch.tensor([1.0, 1e3, 2e3]).view(3, 1, 1)
    share = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    usual = torch.tensor([1.0, 1e6, 4e6])
    floor = SMALL * usual.mean()  # the first channel hardly moves beside the others
    found = wanted + share * usual.sqrt().view(3, 1, 1) * torch.randn_like(wanted).sign()
    each = share.flatten().square() * usual / usual.clamp(min=float(floor))
    assert _error(([wanted], [found])) == pytest.approx(float(each.square().mean().sqrt()), rel=0.02)


def test_batches_add_up_and_outputs_count_alike() -> None:
    wanted, other = torch.randn(64, 5), torch.randn(64) * 1e6
    found, apart = wanted + 0.1, other + 1e5
    whole = _error(([wanted, other], [found, apart]))
    parts = zip(*(values.split([40, 1, 23]) for values in (wanted, other, found, apart)), strict=True)
    assert _error(*(([a, b], [c, d]) for a, b, c, d in parts)) == pytest.approx(whole, rel=1e-9)
    squares = (_error(([wanted], [found])) ** 2 + _error(([other], [apart])) ** 2) / 2
    assert whole == pytest.approx(math.sqrt(squares))


@pytest.mark.parametrize("images", [4, 8, 20])
def test_few_images_give_about_the_error_of_many(images: int) -> None:
    torch.manual_seed(0)
    wanted = torch.randn(400, 10) * 3
    found = wanted + 0.3 * torch.randn_like(wanted)
    draws = [_error(([wanted[at]], [found[at]])) for at in torch.arange(400).split(images)]
    assert sum(draws) / len(draws) == pytest.approx(_error(([wanted], [found])), rel=0.5)


def test_a_dead_channel_does_not_decide() -> None:
    wanted = torch.randn(100, 5)
    wanted[:, 0] = 0
    assert _error(([wanted], [wanted + 0.01])) < 0.001


def test_a_channel_that_becomes_constant_is_an_error_of_one() -> None:
    wanted = torch.randn(500, 3, 6, 6)
    alone = wanted[:, :1]
    assert _error(([alone], [alone.mean((0, 2, 3), keepdim=True).expand_as(alone)])) == pytest.approx(1, rel=0.05)
    found = wanted.clone()
    found[:, 1] = 0
    assert _error(([wanted], [found])) == pytest.approx(math.sqrt(1 / 3), rel=0.05)


def _rows(images: int = 64, anchors: int = 40, classes: int = 18) -> Tensor:
    """Return rows of a detector: boxes in pixels on a grid, and scores, of which two are ever active."""
    grid = torch.linspace(0, 640, anchors)[:, None]
    boxes = grid + 30 * torch.randn(images, anchors, 4)
    scores = 1e-4 * torch.rand(images, anchors, classes)
    scores[..., 3] = (torch.randn(images, anchors) > 1.5) * 0.8
    scores[..., 7] = (torch.randn(images, anchors) > 1.8) * 0.7
    return torch.cat([boxes, scores], -1)


LAYOUTS = {
    "rows of columns": lambda rows: rows,
    "columns of rows": lambda rows: rows.transpose(1, 2),
    "anchors on a map": lambda rows: rows.unflatten(1, (2, 4, 5)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_beside_boxes_in_pixels_count(layout: str) -> None:
    torch.manual_seed(0)
    wanted = _rows()
    near = wanted + torch.cat([torch.randn_like(wanted[..., :4]), 1e-5 * torch.randn_like(wanted[..., 4:])], -1)
    lost = near.clone()
    lost[..., 7] = lost[..., 7].mean()
    small, large = (_error(([LAYOUTS[layout](wanted)], [LAYOUTS[layout](other)])) for other in (near, lost))
    assert small < 0.005
    assert large > 0.15  # one of 22 columns


def test_logits_beside_boxes_count_too() -> None:
    torch.manual_seed(0)
    wanted = torch.cat([300 + 100 * torch.randn(64, 40, 4), torch.randn(64, 40, 2)], -1)
    lost = wanted.clone()
    lost[..., 4:] = 0
    assert _error(([wanted], [lost])) > 0.4


def test_what_all_images_have_in_common_changes_nothing() -> None:
    torch.manual_seed(0)
    wanted = torch.randn(64, 50, 6)
    found = wanted + _noise(wanted)
    plain = _error(([wanted], [found]))
    mask = -1e4 * (torch.arange(50) % 5 == 0)[:, None]
    grid = torch.arange(50.0)[:, None] * torch.arange(6)
    for constant in (torch.tensor(2.0), grid):
        assert _error(([wanted + constant], [found + constant])) == pytest.approx(plain, rel=1e-3)
    masked = [torch.where(mask < 0, -1e4, one) for one in (wanted, found)]
    assert _error(([masked[0]], [masked[1]])) == pytest.approx(plain, rel=0.5)


def test_images_that_are_all_alike_excuse_nothing() -> None:
    wanted = torch.randn(1, 10).expand(40, 10)
    assert _error(([wanted], [wanted + 1e-3])) > 1
    assert _error(([wanted], [wanted])) == 0


def test_sizes_of_images_may_differ_from_batch_to_batch() -> None:
    pairs = [torch.randn(4, 3, size, size) for size in (5, 9)]
    assert 0 < _error(*(([one], [one + 0.1]) for one in pairs)) < 0.02
    rows = [torch.randn(4, size, 8) for size in (5, 9)]  # positions along dimension 1
    assert 0 < _error(*(([one], [one + 0.1]) for one in rows)) < 0.02
    alone = [torch.randn(1, 3, size, size + 2) for size in (15, 29)]
    assert 0.005 < _error(*(([one], [one + 0.1]) for one in alone)) < 0.02


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_is_infinitely_far(wrong: float) -> None:
    wanted = torch.randn(40, 4)
    assert _error(([wanted], [torch.full_like(wanted, wrong)])) == math.inf


def test_a_constant_output_has_an_error_only_where_it_is_missed() -> None:
    zero, other = torch.zeros(40, 4), torch.randn(40, 4)
    assert _error(([zero], [zero])) == 0
    assert _error(([zero], [zero + 1])) == math.inf
    beside = _error(([zero, other], [zero, other + 0.1]))
    assert beside == _error(([other], [other + 0.1]))


def test_nothing_to_compare_is_an_error_and_so_are_other_sizes() -> None:
    for pairs in ([], [([], [])], [([torch.zeros(0, 4)], [torch.zeros(0, 4)])]):
        with pytest.raises(cs.errors.CalibrationError):
            _error(*pairs)
    with pytest.raises(cs.errors.CalibrationError, match="3x4"):
        _error(([torch.zeros(3, 4)], [torch.zeros(2, 4)]))


def test_a_loss_is_scaled_by_the_same_variances() -> None:
    wanted = torch.randn(100, 5, 2, 2) * torch.arange(1.0, 6).view(5, 1, 1)
    found = wanted + torch.randn_like(wanted)
    own = scales([[wanted[:50]], [wanted[50:]]])
    each = (found - wanted).square().mean((0, 2, 3)) * own[0][0].inverse
    assert float(relative_error([found], [wanted], own)) == pytest.approx(float(each.mean()), rel=1e-5)
    assert _error(([wanted], [found])) == pytest.approx(float(each.square().mean().sqrt()), rel=1e-5)
    with pytest.raises(cs.errors.CalibrationError):
        relative_error([], [], [])


@pytest.mark.parametrize("shape", [(10,), (3, 6, 6)])
def test_the_doubt_is_the_scatter_over_draws_of_images(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    wanted = torch.randn(1600, *shape)
    sizes = torch.rand(1600).view(-1, *[1] * len(shape))  # images differ in how hard they are
    found = wanted + 0.3 * sizes * torch.randn_like(wanted)
    drawn = []
    for at in torch.arange(1600).split(32):
        error = OutputError()
        error.add([wanted[at]], [found[at]])
        drawn.append(error.with_doubt())
    values, doubts = torch.tensor(drawn).T
    assert float(doubts.mean()) == pytest.approx(float(values.std()), rel=0.4)
    one = OutputError()
    one.add([wanted[:1]], [found[:1]])
    assert one.with_doubt()[1] == one.value
