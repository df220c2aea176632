"""Closing in on a place from both sides."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings, strategies as st

from convsurgeon.search.bracket import CLOSE, SPENT, Bracket

LOOKS = 6


def _closed_in(bracket: Bracket, lost: Callable[[float], float], looks: int = LOOKS) -> tuple[Bracket, int]:
    """The bracket at the end, and how many looks it took."""
    for number in range(looks):
        if number and bracket.closed:
            return bracket, number
        place = bracket.middle
        low, high = sorted((bracket.good, bracket.bad))
        assert low < place < high
        bracket = bracket.narrowed(place, lost(place), enough=lost(place) <= 1)
    return bracket, looks


@settings(deadline=None)
@given(st.floats(0.15, 0.6), st.floats(0.02, 0.98), st.floats(0.3, 12.0), st.booleans())
def test_it_ends_close_to_where_all_that_may_be_lost_is(low: float, part: float, power: float, rising: bool) -> None:
    """What is lost is a power of the place, falling as with milliseconds or rising as with what layers may lose."""
    place = low * (1 / low) ** part
    sign = 1 if rising else -1
    start = Bracket(good=low, bad=1.0) if rising else Bracket(good=1.0, bad=low)
    end, looks = _closed_in(start, lambda at: (at / place) ** (sign * power))
    apart = max(end.good / place, place / end.good)
    assert (end.good / place) ** (sign * power) <= 1 + 1e-9  # it is enough
    assert apart < CLOSE * 1.01 or (end.lost_good or 0) >= SPENT
    if 0.4 < part < 0.6 and low > 0.3:
        assert looks <= 4


@given(st.floats(0.05, 0.6), st.floats(0.02, 0.98), st.floats(0.3, 12.0))
def test_losses_in_steps_do_not_lead_it_astray(low: float, part: float, power: float) -> None:
    """Of top-1 on few images there are only so many values, 0 among them."""
    place = low * (1 / low) ** part
    end, _ = _closed_in(Bracket(good=1.0, bad=low), lambda at: math.floor(4 * (place / at) ** power) / 4, looks=12)
    assert (place / end.good) ** power <= 1.25
    assert end.closed


def test_the_power_between_two_sides_is_followed() -> None:
    """ResNet-20's: 0.118 at 2.69 times as fast and 0.025 at 1.99 of 0.03 that may be lost."""
    bracket = Bracket(1 / 1.99, 1 / 2.69, 0.025 / 0.03, 0.118 / 0.03)
    assert 1 / bracket.middle == pytest.approx(2.05, abs=0.01)
    assert not bracket.closed
    assert bracket.narrowed(1 / 2.05, 0.95, enough=True).closed
    assert not bracket.narrowed(1 / 2.05, 1.05, enough=False).closed


@pytest.mark.parametrize("lost", [(None, 2.0), (0.5, None), (0.0, 2.0), (-1.0, 2.0), (0.5, math.inf)])
def test_without_a_power_it_halves(lost: tuple[float | None, float | None]) -> None:
    assert Bracket(1.0, 0.25, *lost).middle == pytest.approx(0.5)
