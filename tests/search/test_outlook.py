"""What could be had beside what was taken, by the trials that were made anyway."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import convsurgeon as cs
from convsurgeon.search.outlook import describe_outlook
from convsurgeon.search.search import MOST_TRIALS
from convsurgeon.search.trial import Trial
from tests.search.chain import net
from tests.search.tables import MadeUpTable

PLAN: Any = None
IOU = cs.Within(0.5, metric=lambda _: 92.5, before=92.5)
ERROR = cs.Within(0.03, better="lower", before=0.0)


def trial(speed_up: float, value: float, goal: cs.Within, taken: bool = False) -> Trial:
    told = {"error": value, "value": value, "spent": goal.spent(value), "good_enough": goal.keeps(value)}
    return Trial(PLAN, 1.0, 1.0 / speed_up, **told, taken=taken)


def test_the_next_point_is_the_one_that_loses_least_of_those_that_are_worth_it() -> None:
    taken = trial(1.2, 92.1, IOU, taken=True)
    others = [trial(1.3, 91.9, IOU), trial(1.62, 91.23, IOU), trial(3.0, 60.0, IOU)]  # the first is hardly faster
    assert "About 1.6 times as fast at <lambda> 91.23: Within(1.3, metric=" in describe_outlook(IOU, [taken, *others])
    assert "Within" not in describe_outlook(IOU, [taken])
    left = describe_outlook(ERROR, [trial(2.04, 0.0512, ERROR)])  # nothing was taken
    assert left == "About 2.0 times as fast at an error of 0.051: Within(0.052) (--within 0.052)."
    decided = [dataclasses.replace(trial(2.04, 0.0512, ERROR), lost=0.012)]
    assert "at an error of 0.051, 1.2% of right decisions lost: Within(0.052) (--within 0.052)." in describe_outlook(
        ERROR, decided
    )
    assert cs.Within(0.052, better="lower", before=0.0).keeps(0.0512)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([], f"It uses 40% of the tolerance ({ERROR}): no faster plan exists."),
        ([0.09], "the next faster plan that was tried loses 3.0 times the tolerance."),
        ([0.09] * (MOST_TRIALS - 1), f"the search ended after {MOST_TRIALS} trials."),
    ],
)
def test_why_it_ended_before_the_tolerance_was_used_up(others: list[float], words: str) -> None:
    tried = [trial(1.5, 0.012, ERROR, taken=True), *(trial(2.0, value, ERROR) for value in others)]
    assert words in describe_outlook(ERROR, tried)


def test_nothing_is_said_where_it_is_used_up() -> None:
    assert not describe_outlook(ERROR, [trial(1.5, 0.012, ERROR, taken=True)], stopped=True)
    assert not describe_outlook(ERROR, [trial(1.5, 0.029, ERROR, taken=True), trial(1.55, 0.031, ERROR)])
    assert not describe_outlook(ERROR, [])


def test_where_the_time_goes_names_what_is_no_conv() -> None:
    """All else is no answer where it takes most of the time."""
    model = nn.Sequential(*net(), nn.Flatten(), nn.LazyLinear(16), nn.Linear(16, 2))
    images = torch.randn(40, 8, 12, 12)
    model(images)
    result = cs.convert(
        model.eval(),
        images[:1],
        forms=[cs.DepthwiseSeparable(rank=1)],
        policy=cs.select.everything(),
        calibration=images,
        goal=cs.Within(0.5),
        runtime=cs.Runtime(table=MadeUpTable(total_ms=100.0)),
        progress=False,
    )
    assert result.report.speed.startswith("Left as it was")
    assert f"(91%, where linear_as_conv opens {len(net()) + 1})" in result.report.speed
