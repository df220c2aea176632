"""What becomes of decisions: what it is on outputs where it is known, and what changed ones cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from convsurgeon.graph.decisions import Decisions, interval


def _decisions(wanted: Tensor, found: Tensor, parts: int = 1) -> Decisions:
    made = Decisions()
    for one, two in zip(wanted.tensor_split(parts), found.tensor_split(parts), strict=True):
        made.add([one], [two])
    return made


def test_equal_outputs_lose_nothing() -> None:
    for shape in ((20, 5), (20, 1), (3, 4, 6, 6), (3, 1, 6, 6)):
        same = 6 * torch.randn(shape)
        made = _decisions(same, same.clone())
        assert made.lost == 0
        assert (made.agreement, made.overlap) == ((1.0, None) if len(shape) == 2 else (None, 1.0))


def test_agreement_is_the_share_of_images_with_the_same_largest_score() -> None:
    wanted = torch.eye(4).repeat(5, 1) * 9
    found = wanted.clone()
    found[:5] = found[:5].roll(1, 1)
    made = _decisions(wanted, found, parts=3)
    assert made.agreement == pytest.approx(0.75)
    assert made.lost == pytest.approx(0.25, abs=0.1)


def test_a_close_choice_costs_less_than_a_sure_one() -> None:
    torch.manual_seed(0)
    wanted = 2 * torch.randn(400, 10)
    noise = torch.randn(400, 10)
    close, sure = _decisions(wanted, wanted + noise), _decisions(10 * wanted, 10 * (wanted + noise))
    assert close.agreement == sure.agreement
    assert close.lost < 0.5 * sure.lost


def test_what_is_lost_is_the_accuracy_that_a_calibrated_network_loses() -> None:
    torch.manual_seed(0)
    wanted = 2 * torch.randn(20000, 6)
    answers = torch.distributions.Categorical(logits=wanted).sample()
    found = wanted + torch.randn_like(wanted)
    right = [(one.argmax(1) == answers).double().mean() for one in (wanted, found)]
    assert _decisions(wanted, found).lost == pytest.approx(float(right[0] - right[1]), abs=0.01)


def test_a_class_that_is_lost_counts_although_other_images_have_other_errors() -> None:
    wanted = 9 * torch.eye(4)[torch.arange(120) % 4]
    found = wanted.clone()
    found[:, 3] = -9.0
    assert _decisions(wanted, found).lost > 0.15


def test_few_images_tell_nearly_what_many_do() -> None:
    """Of 100 images three decisions change, or none, or seven: what that costs must not depend on such luck."""
    torch.manual_seed(0)
    wanted = 6 * torch.randn(6000, 10)
    found = wanted + torch.randn_like(wanted)
    few = [_decisions(*part).lost for part in zip(wanted.split(100), found.split(100), strict=True)]
    assert _decisions(wanted, found).lost == pytest.approx(sum(few) / len(few), rel=0.1)
    assert float(torch.tensor(few).std()) < 0.4 * sum(few) / len(few)


def test_thin_structures_count_as_much_as_what_is_around_them() -> None:
    wanted = torch.full((2, 1, 50, 50), -9.0)
    wanted[:, :, 20] = 9.0
    gone = torch.full_like(wanted, -9.0)
    made = _decisions(wanted, gone)
    assert made.overlap == pytest.approx(0.49)
    assert made.lost == pytest.approx(0.48, abs=0.05)  # half of the classes; 1 of 50 places
    thick = wanted.clone()
    thick[:, :, 21] = 9.0
    assert _decisions(wanted, thick).lost > 0.15  # what is added beside it, too
    rare = 6 * torch.randn(2, 3, 20, 20)
    rare[:, 2] = -99
    rare[:, 2, 0, 0] = 99
    without = rare.clone()
    without[:, 2] = -99
    assert _decisions(rare, without).overlap == pytest.approx(2 / 3, abs=0.01)


def _heat_maps() -> Tensor:
    """Return maps (64, 5, 24, 24) that are 1 at one place and fall off around it."""
    across = torch.arange(24.0)
    places = torch.randint(24, (64, 5, 2, 1)).float()
    rows, columns = (torch.exp(-((across - places[:, :, axis]) ** 2) / 8) for axis in (0, 1))
    return rows[..., :, None] * columns[..., None, :]


@pytest.mark.parametrize(
    "measures",
    [
        lambda: torch.rand(64, 8),
        lambda: 224 * torch.rand(64, 2),
        lambda: torch.randn(64, 4),
        lambda: 20 + 60 * torch.rand(64, 1),
        lambda: 1 + torch.rand(8, 1, 24, 24),
        lambda: 0.2 + 0.6 * torch.rand(8, 3, 24, 24),
        lambda: torch.rand(8, 3, 24, 24) - 0.5,
        _heat_maps,
    ],
    ids=["shares", "pixels", "standardised", "an age", "depth", "colours", "colours around 0", "heat maps"],
)
def test_what_measures_something_decides_nothing(measures: Callable[[], Tensor]) -> None:
    torch.manual_seed(0)
    wanted = measures()
    made = _decisions(wanted, wanted.flip(0))
    assert (made.agreement, made.overlap, made.lost) == (None, None, 0.0)


def test_channels_last_and_scores_that_are_probabilities() -> None:
    wanted, found = 3 * torch.randn(2, 4, 8, 8), 3 * torch.randn(2, 4, 8, 8)
    plain = _decisions(wanted, found)
    last = _decisions(wanted.movedim(1, -1), found.movedim(1, -1))
    soft = _decisions(wanted.softmax(1), found.softmax(1))
    for other in (last, soft):
        assert other.lost == pytest.approx(plain.lost, rel=1e-5)
        assert other.overlap == pytest.approx(plain.overlap)


def test_the_interval_is_wilsons() -> None:
    assert interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert interval(1.0, 8) == pytest.approx((0.6756, 1.0), abs=1e-4)


def test_the_doubt_is_the_scatter_over_draws_of_images() -> None:
    torch.manual_seed(0)
    wanted = 2 * torch.randn(6400, 6)
    found = wanted + torch.randn_like(wanted)
    drawn = [_decisions(wanted[at], found[at]).with_doubt() for at in torch.arange(6400).split(64)]
    values, doubts = torch.tensor(drawn).T
    assert float(doubts.mean()) == pytest.approx(float(values.std()), rel=0.2)


def test_many_changed_choices_cost_something_whatever_probabilities_say() -> None:
    wanted = 9 * torch.eye(6)[torch.arange(120) % 6]
    wanted[:, 0] += 1e-3 + wanted.amax(1) * (wanted[:, 0] == 0)  # 0 is as likely as the right one, or a little more
    found = wanted.clone()
    found[:, 0] -= 0.01
    made = _decisions(wanted, found)
    assert made.agreement == pytest.approx(1 / 6)
    assert made.lost == pytest.approx(0.13 * 5 / 6, abs=0.02)
