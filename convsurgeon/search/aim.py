"""Where to look next: the error of the last trial, in proportion to the scores, predicts that of any other plan.

Scores are the error to first order. What the order leaves out is much the same for plans that cost about as much, so
one trial tells it, and before the first one `USUAL` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from convsurgeon.search.bracket import AIM, Bracket
from convsurgeon.search.goal import DEFAULT_ERROR, Budget, Within
from convsurgeon.search.problem import Problem
from convsurgeon.search.study import Study
from convsurgeon.search.trial import Trial

USUAL = 0.85
"""A trial's error over its summed scores."""

_HALVINGS = 7


@dataclass(frozen=True)
class Aim:
    """A bracket, and the place in it to look at next."""

    bracket: Bracket
    place: float

    @staticmethod
    def at(study: Study, goal: Within, bracket: Bracket, last: Trial | None = None) -> Aim:
        """Return where a plan is predicted to lose all that it may.

        Of a metric nothing is predicted but where to begin: at the error that the default allows.
        """
        if goal.metric is not None and last is not None:
            return Aim(bracket, bracket.middle)
        unit = USUAL if last is None else last.value * goal.scale / max(study.predicted_error(last.plan), 1e-300)
        most = AIM * (DEFAULT_ERROR if goal.metric is not None else goal.most) * goal.scale
        if not 0 < most / unit < math.inf:
            return Aim(bracket, bracket.middle)

        def loses(place: float) -> bool:
            return study.predicted_error(Problem.of(study, Budget(latency=min(1.0, place))).plan) * unit > most

        good, bad = bracket.inner
        for _ in range(_HALVINGS):
            middle = math.sqrt(good * bad)
            good, bad = (good, middle) if loses(middle) else (middle, bad)
        return Aim(bracket, good)
