"""`convert`, the whole conversion in one call: capture, plan or search, operate, fit, compare."""

from __future__ import annotations

import dataclasses
import math
import os
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from convsurgeon.base import processes
from convsurgeon.base.errors import BudgetError, CalibrationError, ExportError, LatencyError, WriteError, expect
from convsurgeon.base.normal import in_normal_mode
from convsurgeon.base.progress import say
from convsurgeon.calibration.collect import LIMIT, check_calibration, gather
from convsurgeon.calibration.dataset import Calibration, images_in
from convsurgeon.calibration.images import preparation
from convsurgeon.calibration.normalisation import note_on_untrained
from convsurgeon.calibration.pace import images_in_time
from convsurgeon.distill.loss import OutputJudge
from convsurgeon.distill.reconstruct import reconstruct
from convsurgeon.forms.catalogue import BUDGET_FORMS, DEFAULT_FORMS
from convsurgeon.graph.capture import Capture, capture
from convsurgeon.graph.model_files import Model
from convsurgeon.graph.repeatable import check_repeatable
from convsurgeon.graph.state import undisturbed
from convsurgeon.graph.subgraphs import note_on_inputs, note_on_subgraphs
from convsurgeon.graph.subnormal import note_on_subnormals
from convsurgeon.planning.candidates import Forms, plan_captured
from convsurgeon.planning.layers_as_convs import capture_as_convs
from convsurgeon.planning.plan import Plan
from convsurgeon.planning.select import Predicate
from convsurgeon.planning.surgery import operate
from convsurgeon.report.report import Report, learnable_rows
from convsurgeon.result import Result
from convsurgeon.runtime.latencies import MacsTable
from convsurgeon.runtime.runtime import Runtime
from convsurgeon.runtime.threads import only_free_cores
from convsurgeon.search.goal import Budget, Goal, Within
from convsurgeon.search.outcome import Outcome, describe_rewriting, describe_speed
from convsurgeon.search.outlook import describe_outlook
from convsurgeon.search.search import find_fastest, meet_budget
from convsurgeon.search.study import Study, open_study


@in_normal_mode
def convert(
    model: Model,
    example: object = None,
    *,
    calibration: object = None,
    forms: Forms | Plan | None = None,
    policy: Predicate | None = None,
    goal: Goal | None = None,
    runtime: Runtime | None = None,
    minutes: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Rewrite the convs of a pretrained model into lighter forms, keeping what it learned.

    The input model is unchanged to the bit; the result has its class, device, dtype, memory format and mode, and is
    trainable. `Conv1d` layers take part as convs of one row, and strided `ConvTranspose2d` layers as convs before a
    pixel shuffle, both named `layer.conv`. Without `forms` and `goal` it is the fastest network, measured on this
    machine, whose output stays within the default's error; where that is not 1.1 times as fast the model comes back as
    it was, and `report.speed` says why. In a distributed run the first process converts and the others receive the
    result.

    Args:
        model: any module that runs on the example, or the path of an ONNX file.
        example: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`; not needed for a file
            whose sizes are fixed.
        calibration: unlabelled images to fit the weights to, see `Images`; None has them synthesised from the network,
            which the report says; False takes the weights alone, which at low rank is not enough.
        forms: what convs may become: a list of candidates; by hand a mapping of names or globs to a form, or None for
            dense; or a whole plan.
        policy: which sites may be changed; by default all, without a search (`forms` by hand) all but the stem.
        goal: what is asked for: a `Budget`, or the fastest network `Within` a tolerance.
        runtime: where the network will run: threads, precision, provider, or a device's latency table.
        minutes: that a search for the fastest network may take, nearly: it uses fewer images where all would take
            longer, and tries no further plan after that; Ctrl-C, too, takes the best so far. The same call made again
            goes on from there.
        seed: of synthesised images, and of the output positions that are drawn.
        progress: whether to show progress: bars in a terminal, lines in notebooks and logs.

    Raises:
        BudgetError: the budget cannot be reached; says how far it goes and which layers stand in the way.
        CalibrationError: the images are empty, of another shape, or not finite; or they cannot be synthesised.
        CaptureError: the model does not run on the example.
        ExportError, LatencyError: milliseconds are asked for, and the network has no ONNX form or cannot be timed.
        FormError: a layer that was asked for by its exact name cannot take the form.
        PolicyError: a name fits no conv.

    Returns:
        The converted model with its changes, skips, plan and report.
    """
    check_calibration(calibration, seed)
    expect(goal, (Budget, Within, type(None)), "goal: expected a Budget or a Within", BudgetError)
    expect(runtime, (Runtime, type(None)), "runtime: expected a Runtime", LatencyError)
    if isinstance(goal, Within) and calibration is False:
        raise CalibrationError("within: plans are judged with fitted weights; pass calibration, or leave it out")
    if goal is not None and isinstance(forms, Mapping | Plan):
        raise BudgetError("goal: forms by hand and a plan leave nothing to choose; leave one of the two out")
    if minutes is not None and not (isinstance(minutes, int | float) and minutes > 0):
        raise BudgetError(f"minutes={minutes!r}: pass a number above 0, or leave it out")
    began, worked = time.monotonic(), time.process_time()
    most = math.inf if minutes is None else minutes
    own = Runtime() if runtime is None else runtime
    call = _Call(calibration, forms, policy, goal, own, int(seed), progress, most, began + 60 * most)
    say(f"looking at {'the file' if isinstance(model, str | os.PathLike) else type(model).__name__}", show=progress)
    with nullcontext() if calibration is False else only_free_cores():
        many = processes.size() > 1
        result = _receive(model, example, call) if many else call.run(capture_as_convs(model, example))
    seconds, processor_seconds = time.monotonic() - began, time.process_time() - worked
    report = dataclasses.replace(result.report, seconds=seconds, processor_seconds=processor_seconds)
    return dataclasses.replace(result, report=report, images=preparation(calibration))


@dataclass(frozen=True)
class _Call:
    """The arguments of one call of `convert`, checked."""

    calibration: object
    forms: Forms | Plan | None
    policy: Predicate | None
    goal: Goal | None
    runtime: Runtime
    seed: int
    progress: bool
    minutes: float
    ends: float

    def run(self, seen: Capture) -> Result:
        """Convert a captured model."""
        for note in note_on_subnormals(seen.model):
            warnings.warn(note, stacklevel=4)
        began = time.monotonic()
        check_repeatable(seen.model, seen.example)
        run_s = (time.monotonic() - began) / 2
        goal = self.goal
        if isinstance(goal, Within) and goal.metric is not None:
            goal = goal.resolve(seen.model)  # what is wrong with a metric is said before images are read
        data = self._gather(seen, run_s)
        judge = None if data is None else OutputJudge(seen.model, data.held_back)
        if goal is None and self.forms is None and data is not None:
            goal = Within()
        if isinstance(goal, Within):
            goal = goal.resolve(seen.model, judge)
        outcome, study = self._choose(seen, data, judge, goal)
        result = self._carry_out(seen, outcome.plan, data, judge, study)
        if study is not None and not study.remarks:
            study.earlier.forget()
        if data is not None:
            made_up = data if data.synthetic else None
            result = dataclasses.replace(result, held_back=data.held_back, made_up=made_up)
        result = self._reported(seen, result, goal, outcome, () if study is None else tuple(study.remarks))
        if not isinstance(goal, Within):
            return result
        result = dataclasses.replace(result, within=goal, searched=True)
        asked = [trial.value for trial in outcome.trials if trial.taken and math.isfinite(trial.value)]
        return result if goal.metric is None else result.judged_by(goal, *asked[:1])

    def _gather(self, seen: Capture, run_s: float) -> Calibration | None:
        """Return the images, as many as there is time for, where a run of the network takes so many seconds."""
        by_hand = isinstance(self.forms, Mapping | Plan)
        if math.isinf(self.minutes) or by_hand or self.calibration is False:
            return gather(seen, self.calibration, seed=self.seed, progress=self.progress)
        most = images_in_time(self.minutes, self.ends - time.monotonic(), run_s / max(1, images_in(seen.example)))
        data = gather(seen, self.calibration, seed=self.seed, progress=self.progress, most=most)
        if data is None or isinstance(self.calibration, Calibration):
            return data
        if most >= LIMIT or sum(map(images_in, (*data.fitted, *data.held_back))) < most:
            return data
        note = f"minutes={self.minutes:g} has time for {most} images at most, so no more were used."
        return dataclasses.replace(data, notes=(*data.notes, note))

    def _choose(
        self, seen: Capture, data: Calibration | None, judge: OutputJudge | None, goal: Goal | None
    ) -> tuple[Outcome, Study | None]:
        """Return the plan that the goal asks for, or that was made by hand; and what a search has learned."""
        if isinstance(self.forms, Plan):
            return Outcome(self.forms), None
        if goal is None:
            forms = DEFAULT_FORMS if self.forms is None else self.forms
            return Outcome(plan_captured(seen, forms, self.policy, allow_growth=False)), None
        if isinstance(goal, Budget):
            study = self._study(seen, data, judge, allow_growth=goal.latency is not None)
            study = (study if goal.latency is None else self._timed(study)).with_earlier()
            return meet_budget(study.score(), goal), study
        if any(parameter.is_meta for parameter in seen.model.parameters()):
            raise CalibrationError("within: the model is on the meta device and has no values; load its weights first")
        study = self._study(seen, data, judge, allow_growth=True)
        if data is None or not study.options:
            nothing = "Left as it was: it has no conv that may be rewritten."
            return Outcome(study.base, goal=str(goal), speed=nothing), None
        try:
            study = self._timed(study).with_earlier()
            return find_fastest(study, goal), study
        except (ExportError, LatencyError, WriteError) as error:
            if self.goal is not None:
                raise
            return self._by_macs(study, goal, error)

    def _study(self, seen: Capture, data: Calibration | None, judge: OutputJudge | None, allow_growth: bool) -> Study:
        """Return the candidates; where milliseconds decide, a form may be larger than the conv."""
        assert not isinstance(self.forms, Mapping | Plan)
        return open_study(
            seen,
            data,
            self.runtime,
            judge=judge,
            forms=BUDGET_FORMS if self.forms is None else self.forms,
            policy=self.policy,
            allow_growth=allow_growth,
            seed=self.seed,
            progress=self.progress,
            ends=self.ends,
        )

    def _timed(self, study: Study) -> Study:
        """Return the candidates with their milliseconds."""
        assert not isinstance(self.forms, Mapping | Plan)
        forms = BUDGET_FORMS if self.forms is None else self.forms
        return study.with_table(self.runtime.measure(study.seen, forms, self.policy, progress=self.progress))

    def _by_macs(self, timed: Study, goal: Within, error: Exception) -> tuple[Outcome, Study]:
        """Return the plan with the fewest MACs within the goal, for a network that cannot be timed."""
        study = self._study(timed.seen, timed.data, timed.judge, allow_growth=False)
        study = study.with_table(MacsTable(study.seen, self.runtime.precision))
        found = find_fastest(study, goal)
        trials = (dataclasses.replace(one, dense_ms=math.nan, predicted_ms=math.nan) for one in found.trials)
        what = "plans were compared by MACs" if found.plan.changes else "by MACs no plan is worth it"
        speed = f"Milliseconds are not known, {what}: {error}."
        return dataclasses.replace(found, trials=tuple(trials), speed=speed), study

    def _carry_out(
        self, before: Capture, wanted: Plan, data: Calibration | None, judge: OutputJudge | None, study: Study | None
    ) -> Result:
        """Return the result of a plan: surgery on a copy, a fit that goes on from the search's, a report."""
        model, example = before.model, before.example
        if study is not None and data is not None and wanted.changes:
            made = study.finish(wanted, progress=self.progress)
            converted, done, fits = made.model, made.plan, made.fits
        else:
            converted, done = operate(model, wanted, example)
            fits = None
            if data is not None and done.changes:
                fits = reconstruct(before, converted, done, data, seed=self.seed, progress=self.progress, judge=judge)
        with undisturbed(model):  # a closure that the copy holds may still run modules of the original
            after = capture(converted, example)
        on_meta = any(parameter.is_meta for parameter in model.parameters())
        judge = judge or OutputJudge(model, (example,))
        report = Report(
            before.cost,
            after.cost,
            done.steps,
            learnable_rows(model, converted),
            None if on_meta else judge.compare(converted if done.changes else model),
            str(example),
            reconstruction=fits,
            opaque=tuple(before.opaque.items()),
            notes=(
                *(() if data is None else data.notes),
                *note_on_subgraphs(model, example, fitted=fits is not None),
                *note_on_subnormals(model),
                *note_on_inputs(model, done.changes),
            ),
            warning=(data.warning if data is not None else "") or note_on_untrained(model),
        )
        return Result(converted, done, report, model, example, runtime=self.runtime)

    def _reported(
        self, seen: Capture, result: Result, goal: Goal | None, outcome: Outcome, remarks: tuple[str, ...]
    ) -> Result:
        """Return the result with what the search says of itself, how fast the network is, and its exported graph."""
        speed = outcome.speed or self._time_now(seen, result.plan)
        if speed and (whole := self.runtime.compare_with_file(seen, result.plan, progress=self.progress)):
            speed = f"{speed} {describe_rewriting(whole)}"
        notes = (*result.report.notes, *remarks)
        report = dataclasses.replace(result.report, trials=outcome.trials, goal=outcome.goal, speed=speed, notes=notes)
        if isinstance(goal, Within):
            report = dataclasses.replace(report, outlook=describe_outlook(goal, outcome.trials, stopped=bool(remarks)))
        if speed:
            from convsurgeon.runtime.network_graph import exported_before  # loads onnx

            result = dataclasses.replace(result, exported=exported_before(seen))
        return dataclasses.replace(result, report=report)

    def _time_now(self, seen: Capture, plan: Plan) -> str:
        """Return how fast a plan's network is, timed now if a goal was set whose search had no need to."""
        if self.goal is None or not plan.changes:
            return ""
        try:
            dense_ms, (after,) = self.runtime.time_plans(seen, [plan], progress=self.progress)
        except (ExportError, LatencyError) as error:
            return f"Milliseconds are not known: {error}."
        return describe_speed(dense_ms, after.total_ms, f"measured in {self.runtime.where}", self.runtime.precision)


def _receive(model: Model, example: object, call: _Call) -> Result:
    """Convert in the first process and give every process the result; what it raises, too."""
    seen, within = capture_as_convs(model, example), call.goal

    def convert_here() -> tuple[Plan, dict[str, Tensor], Result]:
        nonlocal within
        result = call.run(seen)
        within = result.within
        bare = dataclasses.replace(result, model=nn.Identity(), original=nn.Identity(), within=None, exported=None)
        return result.plan, result.model.state_dict(), bare

    plan, weights, bare = processes.shared(convert_here)
    converted, _ = operate(seen.model, plan, seen.example)
    converted.load_state_dict(weights)
    kept = within if isinstance(within, Within) and processes.rank() == 0 else None  # a metric is code, and not sent
    return dataclasses.replace(bare, model=converted, original=seen.model, within=kept)
