"""The search: propose a plan, try it, narrow; for budgets, and for the fastest network that loses little."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import TypeVar

from convsurgeon.base.errors import BudgetError
from convsurgeon.base.progress import bar, say
from convsurgeon.runtime.latencies import Latencies, pays, predict
from convsurgeon.search.aim import Aim
from convsurgeon.search.bracket import Bracket
from convsurgeon.search.clock import CorrectedTable, time_plan
from convsurgeon.search.goal import Budget, Within
from convsurgeon.search.outcome import Outcome, describe_gain, describe_times, leave, mark
from convsurgeon.search.problem import Problem
from convsurgeon.search.study import Study
from convsurgeon.search.trial import TOLERANCE, Trial

WORTH = 1.1
"""A network is changed only where that makes the whole at least this much faster."""

MOST_TRIALS = 6
MOST_TRIALS_MORE = 2
"""By a corrected table."""
MOST_TIMINGS = 3
FREED = 0.9
"""Share of a plan's summed score below which another plan that takes as long frees enough to search on."""

S = TypeVar("S")


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
        table = CorrectedTable.of(state.table, state.plan, trial.network)
        least = {**state.limits, "latency": _least_ms(study, table) * (1 + 1e-9)}
        for limits in (state.limits, least):  # where the budget is out of reach now, as far as it goes
            again = dataclasses.replace(state, table=table, limits=limits)
            with contextlib.suppress(BudgetError):
                return None if again.plan == trial.plan else dataclasses.replace(again, limits=state.limits)
        return None

    trials = run_trials(problem, attempt, narrow, MOST_TIMINGS)
    kept = [trial for trial in trials if trial.is_timed and trial.keeps(limit_ms)]
    best = kept[-1] if kept else min(trials, key=lambda trial: trial.measured_ms if trial.is_timed else math.inf)
    missed = ""
    if best.is_timed and not kept:
        asked, reached = limit_ms / best.dense_ms, best.measured_ms / best.dense_ms
        missed = (
            f"The budget was missed: latency {asked:.2f} of the original's was asked for, {reached:.2f} is reached. "
        )
    gain = describe_gain(best, study.runtime)
    return Outcome(best.plan, mark(trials, best, None), str(budget), f"{missed}{gain}")


def find_fastest(study: Study, goal: Within) -> Outcome:
    """Return the fastest plan within a tolerance, if it is worth it.

    Plans are made within shares of the original's milliseconds. What a plan loses grows with what it saves, so the
    fastest that loses no more than it may is closed in on from both sides. The clock then times the whole network, and
    where it tells another story than the table, the search goes on by a table that is corrected. A network that is
    surely not `WORTH` times as fast, or surely slower with all cores, is left as it was.

    Args:
        study: with images and a latency table; not scored yet.
        goal: resolved.
    """
    table = study.table
    assert table is not None
    least = _least_ms(study) / table.total_ms
    if least > 1 / WORTH:
        best_case = "with every layer in its fastest form, whatever that loses, it would be"
        return leave(study, goal, [], f"{best_case} {1 / least:.2f} times as fast by the measured times of its layers")
    study = study.score()
    trials = _close_in(study, goal, Bracket(good=1 / WORTH, bad=least))
    if not any(trial.good_enough for trial in trials):
        slowest = min(trials, key=lambda trial: trial.speed_up)
        figure = f"{goal.name} {slowest.value:.3g}; the tolerance is {goal}"
        why = f"a plan {slowest.speed_up:.2f} times as fast, by the measured times of its layers, has {figure}"
        return leave(study, goal, trials, why)
    trials = _go_by_the_clock(study, goal, trials)
    taken = _fastest(trials)
    if taken.is_timed and taken.interval[1] < WORTH:
        return leave(study, goal, trials, f"the best plan is measured {describe_times(taken)}, {WORTH:g} is worth it")
    verdict = table.with_all_cores(study.seen, taken.plan, progress=study.progress) if taken.is_timed else None
    if verdict is not None and verdict.word == "slower":
        low, high = verdict.interval
        why = f"with all cores the best plan is {verdict.speedup:.2f} times as fast ({low:.2f} to {high:.2f}): slower"
        return leave(study, goal, trials, why)
    gain = describe_gain(taken, study.runtime)
    return Outcome(taken.plan, mark(trials, taken, goal), str(goal), gain)


def _go_by_the_clock(study: Study, goal: Within, trials: list[Trial]) -> list[Trial]:
    """Return the trials, the best ones timed as wholes, and those that the clock led to."""
    best = min((trial for trial in trials if trial.good_enough), key=lambda trial: trial.predicted_ms)
    for _ in range(MOST_TIMINGS):
        timed = dataclasses.replace(best, network=time_plan(study, best.plan).network)
        trials = [timed if trial is best else trial for trial in trials]
        if timed.network is None or timed.agrees or _is_over(study, trials, timed.seconds):
            break
        assert study.table is not None
        study = study.with_table(CorrectedTable.of(study.table, timed.plan, timed.network))
        more = _search_on(study, goal, timed, trials)
        trials += more
        good = [trial for trial in more if trial.good_enough]
        if not good:
            break
        best = good[-1]
    return trials


def _search_on(study: Study, goal: Within, timed: Trial, trials: list[Trial]) -> list[Trial]:
    """Return further trials by a corrected table, if that frees a good part of what may be lost.

    The first takes as long as what was timed, and loses less; from there what is left is spent.
    """
    table = study.table
    assert table is not None
    share = min(timed.measured_ms / table.total_ms, 1 / WORTH)
    least = _least_ms(study) / table.total_ms
    if least > share:
        return []
    plan = Problem.of(study, Budget(latency=share * (1 + 1e-9))).plan
    if study.predicted_error(plan) > FREED * study.predicted_error(timed.plan):
        return []
    first = _try_share(study, goal, share * (1 + 1e-9))
    bracket = Bracket(good=share, bad=least).narrowed(share, first.spent, enough=first.good_enough)
    for trial in trials:
        place = predict(table, trial.plan) / table.total_ms
        if not trial.good_enough and bracket.bad < place < share:
            bracket = bracket.narrowed(place, trial.spent, enough=False)
    if not first.good_enough or bracket.closed or _is_over(study, [*trials, first], first.seconds):
        return [first]
    return [first, *_close_in(study, goal, bracket, first, MOST_TRIALS_MORE)]


def _fastest(trials: list[Trial]) -> Trial:
    """Return the fastest network that is good enough; of those that noise does not tell apart the one nearest to it."""
    good = [trial for trial in trials if trial.good_enough]
    timed = [trial for trial in good if trial.is_timed]
    if not timed:
        return min(good, key=lambda trial: trial.predicted_ms)
    fastest = min(trial.measured_ms for trial in timed)
    tied = [trial for trial in timed if trial.measured_ms <= fastest * (1 + TOLERANCE)]
    return min(tied, key=lambda trial: trial.spent)


def _close_in(
    study: Study, goal: Within, start: Bracket, last: Trial | None = None, most: int = MOST_TRIALS
) -> list[Trial]:
    """Return the trials that close in on the fastest plan that is good enough.

    Where the time is up, or the user interrupts it after a good one, the search ends with what it has.
    """
    assert study.table is not None
    total_ms, trials = study.table.total_ms, list[Trial]()
    with bar(total=most, desc="trying plans", unit="plan", show=study.progress) as shown:

        def attempt(aim: Aim) -> Trial:
            trial = _try_share(study, goal, min(1.0, aim.place * (1 + 1e-9)))
            trials.append(trial)
            figure = f"{goal.name} {trial.value:.4g}, {max(trial.spent, 0.0):.0%} of the tolerance"
            shown.set_postfix_str(f"{trial.speed_up:.2f} times as fast, {figure}", refresh=False)
            shown.update()
            return trial

        def narrow(aim: Aim, trial: Trial) -> Aim | None:
            place = aim.place
            if trial.good_enough:
                place = min(place, trial.predicted_ms / total_ms)
            bracket = aim.bracket.narrowed(place, trial.spent, enough=trial.good_enough)
            if bracket.closed or len(trials) == most:
                return None
            following = Aim.at(study, goal, bracket, trial)
            return None if _is_over(study, trials, trial.seconds, following) else following

        try:
            run_trials(Aim.at(study, goal, start, last), attempt, narrow, most)
        except KeyboardInterrupt:
            if last is None and not any(trial.good_enough for trial in trials):
                raise
            say("the search ends with the best plan so far; Ctrl-C once more ends everything", show=study.progress)
            study.remarks.append(_remark("The search was interrupted", trials))
        return trials


def _is_over(study: Study, trials: list[Trial], seconds: float, following: Aim | None = None) -> bool:
    """Return whether there is no time for another trial of so many seconds, which the study then remarks."""
    if time.monotonic() + seconds < study.ends:
        return False
    if not study.remarks:
        study.remarks.append(_remark("The time for the search was up", trials, following))
    return True


def _remark(why: str, trials: list[Trial], following: Aim | None = None) -> str:
    """Return that a search ended early, and what it would have looked at."""
    ahead = "" if following is None else f"; the next would have been about {1 / following.place:.2f} times as fast"
    return f"{why} after {len(trials)} plan{'s' if len(trials) > 1 else ''}, the best of which was taken{ahead}."


def _try_share(study: Study, goal: Within, share: float) -> Trial:
    """Return the trial of the best plan within a share of the milliseconds; the study keeps the last good network."""
    assert study.table is not None
    plan, began = Problem.of(study, Budget(latency=share)).plan, time.monotonic()
    if goal.metric is None:
        score = study.earlier.of(plan)
        if score is None:
            score = study.try_plan(plan).score
            study.earlier.add(plan, score)
        value = goal.cautious(score)
    else:
        made = study.try_plan(plan, final=True)
        score, value = made.score, goal.ask(made.shipped)
        if goal.keeps(value):
            study.kept[:] = [made]
    study.learn(plan, score.error)
    return Trial(
        plan,
        dense_ms=study.table.total_ms,
        predicted_ms=study.predicted_ms(plan),
        error=score.error,
        lost=score.lost,
        value=value,
        spent=goal.spent(value),
        good_enough=goal.keeps(value),
        seconds=time.monotonic() - began,
    )


def _least_ms(study: Study, table: Latencies | None = None) -> float:
    """Return the milliseconds with every layer in its fastest form, whatever that loses."""
    table = study.table if table is None else table
    assert table is not None
    saved = 0.0
    for name, changes in study.options.items():
        faster = [table.ms(name, change.form) for change in changes if pays(table, name, change.form)]
        saved += table.ms(name, None) - min(faster, default=table.ms(name, None))
    return table.total_ms - saved
