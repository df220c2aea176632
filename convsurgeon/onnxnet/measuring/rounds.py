"""Networks in turns: what each takes beside the others."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from .clock import Clock, Times, Watch
from .engine import MeasureError, first_line

_FIRST_RUNS = 20
_NARROW = 0.02
"""Width of the interval of a ratio of two networks' times at which it counts as known."""
_RESAMPLES = 200
_LEAST_ALONE, _MOST_ALONE = 8, 100


def make_feeds(inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return noise for floats, zeros for everything else."""
    random = np.random.default_rng(0)
    feeds = {}
    for one in inputs:
        dtype = np.dtype(one["dtype"])
        floating = np.issubdtype(dtype, np.floating)
        values = random.standard_normal(one["shape"]) if floating else np.zeros(one["shape"])
        feeds[one["name"]] = np.asarray(values, dtype=dtype)
    return feeds


def time_rounds(sessions: list[tuple[str, Any]], feeds: dict[str, Any], clock: Clock, most: int) -> dict[str, Times]:
    """Return the milliseconds of each round's faster run, by the wall clock and by processor time, shape (rounds, 2).

    Rounds end when it is known of every network what it takes beside the others, or after about `most` runs.
    """
    times: dict[str, Times] = {}
    runs = 0
    while runs < most:
        more = _rounds(sessions, feeds, clock, min(runs or _FIRST_RUNS, most - runs))
        taken = {name: faster(stamps) for name, stamps in more.items()}
        times = {name: np.concatenate([*([times[name]] if times else []), taken[name]]) for name in taken}
        runs = 2 * len(times[sessions[0][0]])
        beside = times[sessions[0][0]][:, 1]
        if all(sum(scatter(one[:, 1], beside)) < _NARROW for one in times.values()):
            break
    return times


def faster(stamps: Times) -> Times:
    """Return the milliseconds of each round's faster run, by the wall clock and of the processor, shape (rounds, 2)."""
    return np.asarray(np.diff(stamps, axis=1).reshape(-1, 2, 2).min(axis=1))


def scatter(ones: Times, others: Times) -> tuple[float, float]:
    """Return how far the ratio of two networks' times may lie below and above what was found, as shares (95 %)."""
    drawn = np.random.default_rng(0).integers(len(ones), size=(_RESAMPLES, len(ones)))
    below, above = np.quantile(low(ones[drawn]) / low(others[drawn]), [0.025, 0.975]) / (low(ones) / low(others))
    return max(1 - float(below), 0.0), max(float(above) - 1, 0.0)


def _rounds(sessions: list[tuple[str, Any]], feeds: dict[str, Any], clock: Clock, runs: int) -> dict[str, Times]:
    """Return both clocks, in ms, before and after every run, shape (runs, 2, 2), two runs a round.

    Every second round goes backwards. Two runs in a row, because the second finds its weights in the processor's
    caches: in a round of single runs the networks at the ends alone would.
    """
    stamps: dict[str, list[Any]] = {name: [] for name, _ in sessions}
    for turn in range(math.ceil(runs / 2)):
        for name, session in sessions if turn % 2 == 0 else sessions[::-1]:
            stamps[name] += [_run(session, feeds, clock) for _ in range(2)]
    return {name: 1e3 * np.array(found) for name, found in stamps.items()}


def watched_rounds(
    sessions: list[tuple[str, Any]], feeds: dict[str, Any], clock: Clock, runs: int
) -> tuple[dict[str, Times], Watch]:
    """Return what `_rounds` does, and who watched."""
    with Watch(clock) as watch:
        stamps = _rounds(sessions, feeds, clock, runs)
    watch.add(np.concatenate(list(stamps.values())))
    return stamps, watch


def _run(session: Any, feeds: dict[str, Any], clock: Clock) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return both clocks before and after a run."""
    started = clock.read()
    try:
        session.run(None, feeds)
    except Exception as error:  # the runtimes' exceptions share no base class but Exception
        raise MeasureError(f"a network cannot be run: {first_line(error)}") from None
    return started, clock.read()


def time_alone(session: Any, feeds: dict[str, Any], clock: Clock, seconds: float) -> Times:
    """Return the milliseconds of runs of one network, of the processor where that is known."""

    def times(runs: int) -> Times:
        return np.diff(_rounds([("", session)], feeds, clock, runs)[""], axis=1)[:, 0, 1]

    return times(int(min(max(1e3 * seconds / max(float(times(4).min()), 1e-3), _LEAST_ALONE), _MOST_ALONE)))


def effort(session: Any, feeds: dict[str, Any], threads: int) -> float:
    """Return the seconds of a core that a run takes: a busy machine needs no fewer runs, though each is longer."""
    started = time.process_time()
    (before, _), (after, _) = _run(session, feeds, Clock(False))
    return min(after - before, (time.process_time() - started) / threads or math.inf)


def low(times: Times) -> Times:
    """Return the mean over the fastest quarter: what the machine takes when nobody disturbs it."""
    return np.asarray(np.sort(times, axis=-1)[..., : max(1, times.shape[-1] // 4)].mean(axis=-1))


def middle(times: Times) -> float:
    """Return the mean over the middle half."""
    aside = len(times) // 4
    return float(np.mean(np.sort(times)[aside : len(times) - aside]))
