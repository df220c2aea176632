"""The search: propose a plan, try it, narrow; for budgets, and for the fastest network that loses little."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from convsurgeon.base.errors import BudgetError
from convsurgeon.base.progress import bar
from convsurgeon.planning.plan import Change, Plan, Skip
from convsurgeon.search.aim import Aim
from convsurgeon.search.bracket import Bracket
from convsurgeon.search.clock import CorrectedTable, time_plan
from convsurgeon.search.goal import Budget, Within, measure
from convsurgeon.search.problem import Problem
from convsurgeon.search.study import Study
from convsurgeon.search.trial import Trial

WORTH = 1.1
"""A network is changed only where that makes the whole at least this much faster."""

MOST_TRIALS = 6
MOST_TIMINGS = 3

SLOWER = "kept dense: slower in another form beside the other changes"
NOT_WORTH_IT = "the network is not worth changing"

S = TypeVar("S")


@dataclass(frozen=True)
class Outcome:
    """What a search came to.

    Args:
        plan: the plan to carry out; it changes nothing where nothing is worth it.
        trials: every plan that was tried; one of them may be marked as taken.
        goal: what was asked for, in words.
        speed: what was gained in milliseconds, or why nothing was: one sentence, or empty.
        most_error: the relative error of the output that was allowed; nan where no error was.
    """

    plan: Plan
    trials: tuple[Trial, ...] = ()
    goal: str = ""
    speed: str = ""
    most_error: float = math.nan


def run_trials(
    state: S | None, attempt: Callable[[S], Trial], narrow: Callable[[S, Trial], S | None], most: int
) -> list[Trial]:
    """Return the trials of a search: each state proposes a plan that is tried, and the trial gives the next state.

    Args:
        state: where to begin.
        attempt: tries the plan of a state.
        narrow: gives the next state after a trial, or None where the search is over.
        most: trials at most.
    """
    trials: list[Trial] = []
    while state is not None and len(trials) < most:
        trials.append(attempt(state))
        state = narrow(state, trials[-1])
    return trials


def meet_budget(study: Study, budget: Budget) -> Outcome:
    """Return the plan with the least summed score under a budget.

    Where milliseconds are limited and can be measured here, the plan's network is timed as a whole, and planned again
    with a corrected table while the measurement differs from the prediction by more than noise.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    problem = Problem.of(study, budget)
    if problem.table is None:
        return Outcome(problem.plan, goal=str(budget))
    limit_ms = problem.limits["latency"]

    def attempt(state: Problem) -> Trial:
        return time_plan(study, state.plan, state.table)

    def narrow(state: Problem, trial: Trial) -> Problem | None:
        if trial.network is None or trial.agrees:
            return None
        assert state.table is not None
        again = dataclasses.replace(state, table=CorrectedTable.of(state.table, state.plan, trial.network))
        try:
            return None if again.plan == trial.plan else again
        except BudgetError:  # by the corrected table; the nearest of what was measured stands
            return None

    trials = run_trials(problem, attempt, narrow, MOST_TIMINGS)
    kept = [trial for trial in trials if trial.is_timed and trial.keeps(limit_ms)]
    best = kept[-1] if kept else min(trials, key=lambda trial: trial.measured_ms if trial.is_timed else math.inf)
    return Outcome(best.plan, _mark(trials, best), str(budget), _describe_gain(study, best))


def find_fastest(study: Study, goal: Within) -> Outcome:
    """Return the fastest plan within a tolerance, if it is worth it.

    Plans are made within shares of the original's milliseconds. What a plan loses grows with what it saves, so the
    fastest that loses no more than it may is closed in on from both sides. The clock then times the whole network:
    layers that are slower beside the other changes go back where that makes the whole no slower, and a network that is
    surely not `WORTH` times as fast, or surely slower with all cores, is left as it was.

    Args:
        study: with images and a latency table; not scored yet.
        goal: resolved.
    """
    table = study.table
    assert table is not None
    most = table.total_ms / _least_ms(study)
    if most < WORTH:
        best_case = "with every layer in its fastest form, whatever that loses, it would be"
        return _leave(study, goal, [], f"{best_case} {most:.2f} times as fast by the table")
    study = study.score()
    trials = _close_in(study, goal)
    good = [trial for trial in trials if trial.good_enough]
    if not good:
        slowest = min(trials, key=lambda trial: trial.speed_up)
        figure = f"{goal.name} {slowest.value:.3g}, allowed was {goal}"
        why = f"a plan {slowest.speed_up:.2f} times as fast by the table has {figure}"
        return _leave(study, goal, trials, why)
    best = good[-1]
    timed = _confirm(study, best)
    trials = [timed[0] if trial is best else trial for trial in trials] + timed[1:]
    taken = _fastest(timed)
    if taken.is_timed and taken.interval[1] < WORTH:
        why = f"the best plan is measured {_times(taken)}, {WORTH:g} is worth it"
        return _leave(study, goal, trials, why)
    verdict = table.with_all_cores(study.seen, taken.plan, progress=study.progress) if taken.is_timed else None
    if verdict is not None and verdict.word == "slower":
        low, high = verdict.interval
        why = f"with all cores the best plan is {verdict.speedup:.2f} times as fast ({low:.2f} to {high:.2f}): slower"
        return _leave(study, goal, trials, why)
    gain = _describe_gain(study, taken, promised=best.speed_up)
    return Outcome(taken.plan, _mark(trials, taken), str(goal), gain, goal.most_error)


def _fastest(timed: list[Trial]) -> Trial:
    """Return the fastest whole network; of those that noise does not tell apart the last, which changes the least."""
    fastest = min(trial.measured_ms if trial.is_timed else math.inf for trial in timed)
    return next(trial for trial in reversed(timed) if not trial.measured_ms > fastest * (1 + trial.tolerance))


def _times(trial: Trial) -> str:
    """Return how many times as fast a trial is, with its interval."""
    low, high = trial.interval
    return f"{trial.speed_up:.2f} times as fast ({low:.2f} to {high:.2f})"


def _close_in(study: Study, goal: Within) -> list[Trial]:
    """Return the trials that close in on the fastest plan that is good enough."""
    assert study.table is not None
    total_ms = study.table.total_ms
    with bar(total=MOST_TRIALS, desc="searching", unit="network", show=study.progress) as shown:

        def attempt(aim: Aim) -> Trial:
            trial = _try_share(study, goal, min(1.0, aim.place * (1 + 1e-9)))
            figure = f"{goal.name} {trial.value:.4g}{'' if trial.good_enough else ', too much'}"
            shown.set_postfix_str(f"{trial.speed_up:.2f} times as fast: {figure}", refresh=False)
            shown.update()
            return trial

        def narrow(aim: Aim, trial: Trial) -> Aim | None:
            place = aim.place
            if trial.good_enough:
                place = min(place, trial.predicted_ms / total_ms)
            bracket = aim.bracket.narrowed(place, goal.spent(trial.value), enough=trial.good_enough)
            return None if bracket.closed else Aim.at(study, goal, bracket, trial)

        start = Bracket(good=1 / WORTH, bad=_least_ms(study) / total_ms)
        return run_trials(Aim.at(study, goal, start), attempt, narrow, MOST_TRIALS)


def _try_share(study: Study, goal: Within, share: float) -> Trial:
    """Return the trial of the best plan within a share of the milliseconds; the study keeps the last good network."""
    assert study.table is not None
    plan = Problem.of(study, Budget(latency=share)).plan
    made = study.try_plan(plan, final=goal.metric is not None)
    value = goal.cautious(made.score) if goal.metric is None else measure(goal.metric, made.shipped)
    if good_enough := goal.keeps(value):
        study.kept[:] = [made]
    return Trial(
        plan,
        dense_ms=study.table.total_ms,
        predicted_ms=study.predicted_ms(plan),
        error=made.score.error,
        lost=made.score.lost,
        value=value,
        good_enough=good_enough,
    )


def _confirm(study: Study, best: Trial) -> list[Trial]:
    """Return the plan timed as a whole, again without the layers that are slower there, until none is."""

    def attempt(plan: Plan) -> Trial:
        trial = time_plan(study, plan)
        if plan is best.plan:
            trial = dataclasses.replace(trial, error=best.error, lost=best.lost, value=best.value)
        return trial

    def narrow(plan: Plan, trial: Trial) -> Plan | None:
        return plan.without(dict.fromkeys(trial.slower, SLOWER)) if trial.slower else None

    return run_trials(best.plan, attempt, narrow, MOST_TIMINGS)


def _least_ms(study: Study) -> float:
    """Return the milliseconds with every layer in its fastest form, whatever that loses."""
    table = study.table
    assert table is not None
    saved = 0.0  # the study holds faster candidates only
    for name, changes in study.options.items():
        saved += table.ms(name, None) - min(table.ms(name, change.form) for change in changes)
    return table.total_ms - saved


def _mark(trials: list[Trial], best: Trial) -> tuple[Trial, ...]:
    return tuple(dataclasses.replace(trial, taken=trial is best) for trial in trials)


def _describe_gain(study: Study, taken: Trial, promised: float | None = None) -> str:
    """Return what a plan does to the milliseconds, in one sentence."""
    if not math.isfinite(taken.speed_up):
        return ""
    by_table = "by the table of latencies"
    ms = taken.measured_ms if taken.is_timed else taken.predicted_ms
    low, high = taken.interval
    how = f"measured in onnxruntime ({low:.2f} to {high:.2f})" if taken.is_timed else by_table
    note = "" if promised is None or not taken.is_timed else f"; {promised:.2f} times {by_table}"
    return describe_speed(taken.dense_ms, ms, f"{how}{note}", study.runtime.precision)


def describe_speed(before_ms: float, after_ms: float, how: str, precision: str) -> str:
    """Return the comparison of two networks' milliseconds in one sentence."""
    against = "" if precision == "fp32" else f" in {precision} as the original in {precision}"
    slower = "" if after_ms <= before_ms else ", that is slower"
    faster = f"{before_ms / after_ms:.2f} times as fast{against}{slower}"
    return f"{faster}: {after_ms:.3g} ms instead of {before_ms:.3g}, {how}."


def _leave(study: Study, goal: Within, trials: list[Trial], why: str) -> Outcome:
    """Return the outcome that changes nothing, and why."""
    steps = tuple(Skip(step.site, NOT_WORTH_IT) if isinstance(step, Change) else step for step in study.base.steps)
    plan = dataclasses.replace(study.base, steps=steps)
    sentence = f"Left as it was: {why}; {_where_the_time_goes(study)}."
    return Outcome(plan, tuple(trials), str(goal), sentence, goal.most_error)


def _where_the_time_goes(study: Study) -> str:
    table = study.table
    assert table is not None
    times = {step.name: table.ms(step.name, None) for step in study.base.steps if table.has(step.name, None)}
    largest = sorted(times, key=lambda name: -times[name])[:3]
    parts = [f"{name} ({times[name] / table.total_ms:.0%})" for name in largest]
    rest = max(0.0, 1 - sum(times.values()) / table.total_ms)
    return f"the time ({table.total_ms:.3g} ms) goes to {', '.join([*parts, f'all else ({rest:.0%})'])}"
