"""A learning rate by trial: short runs from the same start over the same batches, and the best end wins.

Few steps favour a slow rate: of a whole run a faster one is better, and if it is not a quarter of it is taken back. So
the next faster rate is taken. ResNet-20 at 0.2 of the MACs (seed 0, twelve epochs): the trials like 1e-4, which goes
from a distance of 0.0845 to 0.0752; 3e-4 goes to 0.0718.

A range test that raises the rate step by step (Smith 2017) reads the training loss, whose noise from batch to batch is
larger than what a step changes here: the start is already close to the original. So every rate gets a whole small
schedule, warm-up and decay included, and is judged by the held-back images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from tqdm import tqdm

from convsurgeon.base import processes as world
from convsurgeon.distill.batches import Stream
from convsurgeon.distill.loss import Judge
from convsurgeon.distill.training import Training
from convsurgeon.graph.state import copy_state

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
"""That are tried, for SOAP and Adam alike."""
STEPS, _LEAST_STEPS = 40, 8
_SHARE = 0.025
"""Of a run's steps, for each trial; no more than `STEPS`."""


def best_rate(
    model: nn.Module,
    make: Callable[[float, int], Training],
    stream: Stream,
    judge: Judge,
    steps: int,
    progress: bool,
    rates: Sequence[float] = RATES,
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """The next faster rate than the one whose trial ends nearest to the original, and (rate, distance) of every trial.

    Args:
        model: is left with the weights it came with.
        make: rate, steps -> a fresh run of the model.
        stream: whose first batches are used.
        judge: of the held-back images.
        steps: of the run that is to come.
        progress: whether to show a bar.
        rates: to be tried.
    """
    start = copy_state(model)
    found: list[tuple[float, float]] = []
    each, hidden = min(STEPS, max(_LEAST_STEPS, round(_SHARE * steps))), world.silent(progress)
    bar: tqdm[Any] = tqdm(total=len(rates) * each, desc="learning rates", unit="step", leave=False, disable=hidden)
    with bar:
        for rate in rates:
            found.append((rate, _trial(make(rate, each), stream, judge, bar)))
            model.load_state_dict(start)
    best = min(found, key=lambda pair: pair[1])[0]
    return min((rate for rate in rates if rate > best), default=best), tuple(found)


def _trial(training: Training, stream: Stream, judge: Judge, bar: tqdm[Any]) -> float:
    for batch in stream.steps(0, training.steps):
        try:
            training.advance(batch)
        except FloatingPointError:
            return math.inf
        bar.update()
    return judge.score(training.model).distance
