"""What a search came to, in one plan and one sentence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from convsurgeon.planning.plan import Change, Plan, Skip
from convsurgeon.runtime.latencies import BUSY
from convsurgeon.runtime.runtime import Runtime
from convsurgeon.search.goal import Within
from convsurgeon.search.study import Study
from convsurgeon.search.trial import Trial
from convsurgeon.timing.verdict import Verdict

NOT_WORTH_IT = "the network is not worth changing"
_MUCH = 0.3
"""Share of the time outside the convs from which on it is said what else could be opened."""
_SURE = 0.05
"""Spread of a measurement up to which a busy machine leaves the figure as it is."""


@dataclass(frozen=True)
class Outcome:
    """What a search came to.

    Args:
        plan: the plan to carry out; it changes nothing where nothing is worth it.
        trials: every plan that was tried; one of them may be marked as taken.
        goal: what was asked for, in words.
        speed: what was gained in milliseconds, or why nothing was: one sentence, or empty.
    """

    plan: Plan
    trials: tuple[Trial, ...] = ()
    goal: str = ""
    speed: str = ""


def mark(trials: Sequence[Trial], taken: Trial | None, goal: Within | None, why: str = "") -> tuple[Trial, ...]:
    """Return the trials with the one that was taken marked, and of every other one why it was not.

    Args:
        trials: of a search.
        taken: one of them, if one was.
        goal: what decided beside the milliseconds.
        why: those that the goal allows were not taken.
    """
    marked = []
    for trial in trials:
        if trial is taken:
            reason = ""
        elif goal is not None and not trial.good_enough:
            reason = f"{goal.name} {trial.value:.3g}; the tolerance is {goal}"
        else:
            reason = why or "another plan does better"
        marked.append(dataclasses.replace(trial, taken=trial is taken, why=reason))
    return tuple(marked)


def leave(study: Study, goal: Within, trials: Sequence[Trial], why: str) -> Outcome:
    """Return the outcome that changes nothing, and why."""
    steps = tuple(Skip(step.site, NOT_WORTH_IT) if isinstance(step, Change) else step for step in study.base.steps)
    plan = dataclasses.replace(study.base, steps=steps)
    kept = "; result.alternatives holds its plan" if any(trial.good_enough for trial in trials) else ""
    sentence = f"Left as it was: {why}; {_where_the_time_goes(study)}{kept}."
    return Outcome(plan, mark(trials, None, goal, why), str(goal), sentence)


def describe_times(trial: Trial) -> str:
    """Return how many times as fast a trial was measured to be, with its interval."""
    low, high = trial.interval
    return f"{trial.speed_up:.2f} times as fast ({low:.2f} to {high:.2f})"


def describe_gain(taken: Trial, runtime: Runtime) -> str:
    """Return what a plan does to the milliseconds, in one sentence."""
    if not math.isfinite(taken.speed_up):
        return ""
    if taken.network is None:
        return describe_speed(
            taken.dense_ms, taken.predicted_ms, "by the measured times of its layers", runtime.precision
        )
    low, high = taken.interval
    if taken.network.busy > BUSY and taken.spread > _SURE and low > 1:
        against = _against(runtime.precision)
        return f"At least {low:.2f} times as fast{against}, measured in {runtime.where}; the machine was busy."
    how = f"measured in {runtime.where} ({low:.2f} to {high:.2f})"
    return describe_speed(taken.dense_ms, taken.measured_ms, how, runtime.precision)


def describe_speed(before_ms: float, after_ms: float, how: str, precision: str) -> str:
    """Return the comparison of two networks' milliseconds in one sentence."""
    slower = "" if after_ms <= before_ms else ", that is slower"
    faster = f"{before_ms / after_ms:.2f} times as fast{_against(precision)}{slower}"
    return f"{faster}: {after_ms:.3g} ms instead of {before_ms:.3g}, {how}."


def describe_rewriting(whole: Verdict) -> str:
    """Return what comes of writing PReLU as ReLU and products, in one sentence."""
    low, high = whole.interval
    times = f"{whole.speedup:.2f} times as fast ({low:.2f} to {high:.2f})"
    return f"PReLU is written as ReLU and products, exactly: in all, its file is {times} as the original's own."


def _against(precision: str) -> str:
    return "" if precision == "fp32" else f" in {precision} as the original in {precision}"


def _where_the_time_goes(study: Study) -> str:
    table = study.table
    assert table is not None
    times = {step.name: table.ms(step.name, None) for step in study.base.steps if table.has(step.name, None)}
    largest = sorted(times, key=lambda name: -times[name])[:3]
    parts = [f"{name} ({times[name] / table.total_ms:.0%})" for name in largest]
    rest = max(0.0, 1 - sum(times.values()) / table.total_ms)
    linears = {name: one.weight.numel() for name, one in study.seen.model.named_modules() if isinstance(one, nn.Linear)}
    named = f", where linear_as_conv opens {max(linears, key=lambda name: linears[name])}" if linears else ""
    parts.append(f"all else ({rest:.0%}{named if rest >= _MUCH else ''})")
    return f"the time ({table.total_ms:.3g} ms) goes to {', '.join(parts)}"
