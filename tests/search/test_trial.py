"""Plans on trial: fitted roughly, to what they were rated on; what ships is fitted whole."""

from __future__ import annotations

import pytest
import torch

import convsurgeon as cs
from convsurgeon.calibration.collect import read
from convsurgeon.forms import cpfit
from convsurgeon.search.scores import EFFORT
from convsurgeon.search.trial import Appraised, appraise, best_forms, trial
from tests.search.chain import net

IMAGES = torch.randn(80, 8, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps every search for CP's factors was given."""
    given: list[int] = []
    honest = cpfit.descended

    def descended(*parts: object) -> object:
        given.append(int(parts[3]))  # type: ignore[call-overload]
        return honest(*parts)  # type: ignore[arg-type]

    monkeypatch.setattr(cpfit, "descended", descended)
    return given


def _rated() -> Appraised:
    seen = cs.capture(net(), IMAGES[:1])
    data = read(IMAGES, seen.example, len(IMAGES))
    return appraise(seen, [cs.CP(rank=8)], cs.select.everything(), False, data, 0, progress=False)


def test_a_trial_takes_half_of_the_steps_that_what_ships_takes(steps: list[int]) -> None:
    rated = _rated()
    plan = best_forms(rated)
    steps.clear()
    _, roughly = trial(rated, plan)
    rough = list(steps)
    steps.clear()
    _, whole = trial(rated, plan, rated.data[0].images)
    assert rough == [EFFORT * count for count in steps]
    assert rough
    assert whole < 1.05 * roughly < 1.5 * whole
