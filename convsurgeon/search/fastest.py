"""The fastest plan that is still good enough, and whether it is worth it.

Milliseconds are what is spent less of, so plans are made within shares of them (`problem`), from the least that can be
reached to `1 / WORTH`. What a plan loses grows with what it saves, so the fastest that loses no more than it may is
closed in on from both sides (`bracket`), in `EVALUATIONS` networks at most. The clock then times the whole: layers that
are slower in the company of the others go back, and what is not `WORTH` times as fast, or slower with all cores, is not
taken at all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from convsurgeon.base import processes as world
from convsurgeon.base.precision import Precision
from convsurgeon.planning.plan import Change, Plan, Skip
from convsurgeon.runtime.latencies import Latencies, beside, pays
from convsurgeon.search.bracket import Bracket
from convsurgeon.search.budget import Budget
from convsurgeon.search.choice import distinct, predicted, problem
from convsurgeon.search.confirm import ROUNDS, Timing, time_plan, timing
from convsurgeon.search.limit import Limit, measured
from convsurgeon.search.trial import Appraised, contest, trial

WORTH = 1.1
"""A network is changed only where that makes the whole at least this much faster."""

EVALUATIONS = 6
_RIVAL = 1.2
"""Times the error of the best plan from which on the way that a plan was rated by is not tried again.

That is of the first networks; from the second on the best alone goes on. At equal milliseconds the ways that are left
differ by a few per cent of error, which is a per cent of speed, and each takes all fits of a network.
"""
_SLOWER = "kept dense: slower in another form beside the other changes"


@dataclass(frozen=True)
class Attempt:
    """A plan that was tried: how fast the table calls it, and what it loses."""

    predicted_ms: float
    dense_ms: float
    macs: int
    measure: str
    """How layers were rated for it."""
    value: float
    enough: bool
    taken: bool = False


@dataclass(frozen=True)
class Search:
    """The plan to carry out, which changes nothing where nothing is worth it; what was tried, timed, and said of it."""

    plan: Plan
    limit: str
    attempts: tuple[Attempt, ...]
    timings: tuple[Timing, ...]
    sentence: str


@dataclass(frozen=True)
class _Found:
    plan: Plan
    attempt: Attempt


def quickest(options: Mapping[str, Sequence[Change]], table: Latencies) -> float:
    """Milliseconds with every layer in its fastest form, whatever that loses: no plan is faster by this table."""
    saved = 0.0
    for name, changes in options.items():
        dense = table.ms(name, None)
        times = [table.ms(name, change.form) for change in changes if pays(table, name, change.form)]
        saved += max([dense - ms for ms in times], default=0.0)
    return table.total_ms - saved


def hopeless(base: Plan, options: Mapping[str, Sequence[Change]], table: Latencies, limit: Limit) -> Search | None:
    """The search that need not be made, because even the quickest plan is not worth it; None where it must be."""
    most = table.total_ms / quickest(options, table)
    if most >= WORTH:
        return None
    why = (
        f"with every layer in its fastest form, whatever that loses, it would be {most:.2f} times as fast by the table"
    )
    return _left(base, table, limit, (), (), why)


def fastest(rated: Appraised, table: Latencies, limit: Limit, progress: bool) -> Search:
    """The fastest plan within a limit, if it is worth it.

    Args:
        rated: the candidates, with calibration data.
        table: milliseconds of every site; one of this machine also times the whole.
        limit: what may be lost.
        progress: whether to show bars.
    """
    attempts, found = _closed_in(rated, table, limit, progress)
    if not found:
        slowest = max(attempts, key=lambda one: one.predicted_ms)
        speed = slowest.dense_ms / slowest.predicted_ms
        why = f"a plan {speed:.2f} times as fast by the table has {limit.name} {slowest.value:.3g}, allowed was {limit}"
        return _left(rated.base, table, limit, attempts, (), why)
    best = found[-1]
    plan, timings, slow = _clocked(rated, table, best, progress)
    if slow:
        return _left(rated.base, table, limit, attempts, timings, slow)
    kept = tuple(dataclasses.replace(one, taken=one is best.attempt) for one in attempts)
    return Search(plan, str(limit), kept, timings, _gained(best.attempt, timings, rated.precision))


def _closed_in(
    rated: Appraised, table: Latencies, limit: Limit, progress: bool
) -> tuple[tuple[Attempt, ...], list[_Found]]:
    """All attempts, and those that are good enough, the fastest last."""
    bracket = Bracket(good=1 / WORTH, bad=quickest(rated.options, table) / table.total_ms)
    attempts: list[Attempt] = []
    found: list[_Found] = []
    with tqdm(total=EVALUATIONS, desc="searching", unit="network", disable=world.silent(progress)) as bar:
        while len(attempts) < EVALUATIONS and not (attempts and bracket.closed):
            share = bracket.middle
            one, rated = _attempt(rated, table, limit, share, first=not attempts)
            attempts.append(one.attempt)
            enough, place = one.attempt.enough, share
            if enough:
                found.append(one)
                place = min(share, one.attempt.predicted_ms / table.total_ms)
            bracket = bracket.narrowed(place, limit.spent(one.attempt.value), enough=enough)
            bar.set_postfix_str(_told(one.attempt, limit), refresh=False)
            bar.update()
    return tuple(attempts), found


def _attempt(rated: Appraised, table: Latencies, limit: Limit, share: float, first: bool) -> tuple[_Found, Appraised]:
    """The best plan within a share of the milliseconds, carried out; and the ways of rating that are worth another."""
    task = problem(rated.seen, rated.base, rated.options, Budget(latency=min(1.0, share * (1 + 1e-9))), table)
    plans = distinct(task, rated.measures)
    judged = contest(rated, plans, alone=not limit.metric)
    best = next(one for one in judged if one.taken)
    plan = plans[best.measure]
    if limit.metric:
        (metric,) = limit.metric
        shipped = trial(rated, plan, rated.data[0].images, jointly=True)[0]  # what is carried out in the end
        value = world.shared(lambda: measured(metric, shipped))
    else:
        value = best.error / limit.scale
    ms = predicted(table, plan)
    found = _Found(plan, Attempt(ms, table.total_ms, plan.macs_after, best.measure, value, limit.keeps(value)))
    near = {one.measure for one in judged if one.taken or (first and one.error <= _RIVAL * best.error)}
    left = {name: errors for name, errors in rated.measures.items() if name in near}
    return found, dataclasses.replace(rated, measures=left)


def _told(one: Attempt, limit: Limit) -> str:
    mark = "" if one.enough else ", too much"
    return f"{one.dense_ms / one.predicted_ms:.2f} times as fast: {limit.name} {one.value:.4g}{mark}"


def _clocked(rated: Appraised, table: Latencies, best: _Found, progress: bool) -> tuple[Plan, tuple[Timing, ...], str]:
    """The plan without layers that are slower in company, what was timed, and why it is not to be taken, if so."""
    plan, timings = best.plan, []
    for number in range(1, ROUNDS + 1):
        whole = time_plan(table, rated.seen, plan, progress)
        if whole is None:
            break
        timings.append(timing(best.attempt.measure, number, math.inf, table, plan, whole))
        if not timings[-1].slower:
            break
        plan = plan.without(dict.fromkeys(timings[-1].slower, _SLOWER))
    if not timings:
        return plan, (), ""
    last = timings[-1]
    speed = last.dense_ms / last.measured_ms
    if speed < WORTH or last.slower:
        return plan, tuple(timings), f"the best plan is {speed:.2f} times as fast measured, {WORTH:g} is worth it"
    timings[-1] = dataclasses.replace(last, taken=True)
    return plan, tuple(timings), _with_all_cores(rated, table, plan, progress)


def _with_all_cores(rated: Appraised, table: Latencies, plan: Plan, progress: bool) -> str:
    """Why a plan that is worth it with the table's threads is not to be taken: with all cores it is slower."""
    whole = time_plan(table, rated.seen, plan, progress, all_cores=True)
    if whole is None:
        return ""
    speed = table.total_ms / whole.total_ms
    return f"the best plan is {speed:.2f} times as fast with all cores, that is slower" if speed < 1 else ""


def _gained(attempt: Attempt, timings: Sequence[Timing], precision: Precision) -> str:
    promised = f"{attempt.dense_ms / attempt.predicted_ms:.2f} times as fast"
    table, against = "by the table of latencies", beside(precision)
    if not timings:
        return f"{promised}{against} {table} ({attempt.predicted_ms:.3g} ms instead of {attempt.dense_ms:.3g})."
    last = timings[-1]
    speed = f"{last.dense_ms / last.measured_ms:.2f} times as fast{against} measured"
    return f"{speed} ({last.measured_ms:.3g} ms instead of {last.dense_ms:.3g}), {promised} {table}."


def _left(
    base: Plan, table: Latencies, limit: Limit, attempts: Sequence[Attempt], timings: Sequence[Timing], why: str
) -> Search:
    """Nothing is changed, and why."""
    steps = tuple(Skip(step.site, "the network is not worth changing") if isinstance(step, Change) else step
                  for step in base.steps)  # fmt: skip
    sentence = f"Left as it was: {why}; {_where(base, table)}."
    still = tuple(dataclasses.replace(one, taken=False) for one in timings)
    return Search(dataclasses.replace(base, steps=steps), str(limit), tuple(attempts), still, sentence)


def _where(base: Plan, table: Latencies) -> str:
    """The layers that cost the time."""
    times = {step.name: table.ms(step.name, None) for step in base.steps if table.has(step.name, None)}
    largest = sorted(times, key=lambda name: -times[name])[:3]
    parts = [f"{name} ({times[name] / table.total_ms:.0%})" for name in largest]
    rest = max(0.0, 1 - sum(times.values()) / table.total_ms)
    return f"the time ({table.total_ms:.3g} ms) goes to {', '.join([*parts, f'all else ({rest:.0%})'])}"
