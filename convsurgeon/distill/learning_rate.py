"""A learning rate by trial: short runs from the same start over the same batches, each with its whole schedule.

Few steps favour a slow rate, and a rate that is too fast is taken back after a quarter. So the next faster rate than
the best of the trials is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from torch import nn

from convsurgeon.base.progress import bar
from convsurgeon.distill.distiller import Distiller
from convsurgeon.distill.record import Score
from convsurgeon.graph.example import Example
from convsurgeon.graph.state import restore_state

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
STEPS, _LEAST_STEPS = 40, 8
_SHARE = 0.025
"""Of a run's steps, for each trial; no more than `STEPS`."""


def best_rate(
    make: Callable[[float, int], Distiller],
    batches: Callable[[int], Iterable[Example]],
    judge: Callable[[nn.Module], Score],
    steps: int,
    progress: bool,
) -> tuple[float, list[tuple[float, float]]]:
    """Return the next faster rate than the best one in trials, and (rate, error) of every trial.

    Args:
        make: (rate, steps) -> a fresh run; the student is left with the weights that it came with.
        batches: the first so many batches of the run to come.
        judge: scores a model.
        steps: of the run to come.
        progress: whether to show a bar.
    """
    each = min(STEPS, max(_LEAST_STEPS, round(_SHARE * steps)))
    trials: list[tuple[float, float]] = []
    with bar(total=len(RATES) * each, desc="learning rates", unit="step", show=progress) as shown:
        for rate in RATES:
            trial = make(rate, each)
            try:
                for batch in batches(each):
                    trial.advance(batch)
                    shown.update()
                trials.append((rate, judge(trial.student).error))
            except FloatingPointError:  # the loss is not finite
                trials.append((rate, math.inf))
            restore_state(trial.student, trial.weights)
    best = min(trials, key=lambda pair: pair[1])[0]
    return min((rate for rate in RATES if rate > best), default=best), trials
