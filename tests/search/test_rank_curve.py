"""Scores of many ranks from a few: right where the law holds, fitted one by one where it does not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

import convsurgeon as cs
from convsurgeon.search.rank_curve import POINTS, score_ranks

RANKS = (16, 32, 48, 64, 80, 96, 112)


def _changes(*forms: cs.Form) -> list[cs.Change]:
    model = nn.Sequential(nn.Conv2d(128, 128, 3), nn.ReLU(), nn.Conv2d(128, 8, 1)).eval()
    plans = [
        cs.plan(model, torch.zeros(1, 128, 5, 5), forms=[form], policy=cs.select.everything(), allow_growth=True)
        for form in forms
    ]
    return [plan.changes["0"] for plan in plans]


CHANGES = _changes(*(cs.CP(rank=rank) for rank in RANKS), cs.DepthwiseSeparable(rank=1), cs.DepthwiseSeparable(rank=2))


def _rank(change: cs.Change) -> int:
    return int(change.form.label.split()[-1])


@given(st.lists(st.floats(-2, 2), min_size=3, max_size=3), st.floats(0.1, 10), st.floats(1, 3))
def test_a_falling_curve_is_read_off_from_rough_fits_and_a_whole_one(
    parts: list[float], scale: float, looser: float
) -> None:
    asked: list[tuple[str, str]] = []

    def fitted(change: cs.Change) -> float:
        asked.append(("fitted", change.form.label))
        part = _rank(change) / max(RANKS)
        return scale * math.exp(-3 * part - sum(abs(one) * part**power for power, one in enumerate(parts)))

    def roughly(change: cs.Change) -> float:
        error = fitted(change)
        asked[-1] = ("roughly", change.form.label)
        return looser * error

    found = score_ranks(CHANGES, fitted, roughly)
    assert len(asked) == len(set(asked)) == POINTS + 1 + 2
    assert [label for how, label in asked if how == "fitted"] == [CHANGES[at].form.label for at in (0, 7, 8)]
    assert set(found) == {change.form.label for change in CHANGES}
    for change in CHANGES:
        assert found[change.form.label] == pytest.approx(fitted(change), rel=1e-6)


@pytest.mark.parametrize("wrong", [0.0, math.inf, math.nan])
def test_what_has_no_logarithm_is_fitted_rank_by_rank(wrong: float) -> None:
    asked: list[str] = []

    def fitted(change: cs.Change) -> float:
        asked.append(change.form.label)
        return wrong if _rank(change) == RANKS[-1] else 1.0

    found = score_ranks(CHANGES, fitted, fitted)
    assert {change.form.label for change in CHANGES} == set(asked) == set(found)


def test_a_curve_stays_between_its_ends() -> None:
    wild = dict(zip(RANKS, (1.0, 0.0, 1e-9, 0.0, 1.0, 0.0, 1e-9), strict=True))

    def fitted(change: cs.Change) -> float:
        return wild.get(_rank(change), 1.0) or 1.0

    found = score_ranks(CHANGES, fitted, fitted)
    assert all(own * (1 + 1e-6) >= 1e-9 and own <= 1 + 1e-6 for own in found.values())


def test_forms_that_differ_in_more_than_rank_share_no_curve() -> None:
    others = [replace(change, form=replace(change.form, init="random")) for change in CHANGES[:3]]
    asked: list[str] = []

    def fitted(change: cs.Change) -> float:
        asked.append(change.form.label)
        return 1.0

    score_ranks([*CHANGES[:4], *others], fitted, fitted)
    assert len(asked) == 7
