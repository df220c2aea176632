"""What a search leaves to be had: why it ended before its tolerance was used up, and what a larger one would allow."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convsurgeon.search.bracket import SPENT
from convsurgeon.search.goal import Within
from convsurgeon.search.search import MOST_TRIALS
from convsurgeon.search.trial import Trial

_FASTER = 1.15
"""Times as fast as what was taken that a plan is worth speaking of."""


def describe_outlook(goal: Within, trials: Sequence[Trial], *, stopped: bool = False) -> str:
    """Return in a sentence or two what else could be had, by the trials that were made anyway; empty if nothing.

    Of a search that was `stopped`, by its time or its user, it is not known whether a faster plan exists.
    """
    judged = [trial for trial in trials if math.isfinite(trial.value)]
    return " ".join(filter(None, ("" if stopped else _unspent(goal, judged), _next_point(goal, judged))))


def _unspent(goal: Within, trials: Sequence[Trial]) -> str:
    taken = next((trial for trial in trials if trial.taken), None)
    if taken is None or taken.spent >= SPENT:
        return ""
    bad = [trial.spent for trial in trials if not trial.good_enough]
    if not bad:
        why = "no faster plan exists"
    elif len(trials) >= MOST_TRIALS:
        why = f"the search ended after {len(trials)} trials"
    else:
        why = f"the next faster plan that was tried loses {min(bad):.1f} times the tolerance"
    return f"It uses {max(taken.spent, 0.0):.0%} of the tolerance ({goal}): {why}."


def _next_point(goal: Within, trials: Sequence[Trial]) -> str:
    reached = max((trial.speed_up for trial in trials if trial.taken), default=1.0)
    faster = [trial for trial in trials if not trial.good_enough and trial.speed_up >= _FASTER * reached]
    if not faster:
        return ""
    near = min(faster, key=lambda trial: goal.lost(trial.value))
    if goal.metric is not None:
        most = f"{_rounded_up(goal.lost(near.value)):g}"
        call = f"Within({most}, metric={goal.name}) (--within {most})"
        return f"About {near.speed_up:.1f} times as fast at {goal.name} {near.value:.4g}: {call}."
    error = near.error / goal.scale
    lost = f", {near.lost:.1%} of right decisions lost" if near.lost > 0 else ""
    most = f"{_rounded_up(error):g}"
    call = f"Within({most}) (--within {most})"
    return f"About {near.speed_up:.1f} times as fast at an error of {error:.2g}{lost}: {call}."


def _rounded_up(value: float) -> float:
    """Return the next number of two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit
