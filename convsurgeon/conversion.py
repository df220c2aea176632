"""`convert`, which is all of it in one call: capture, plan, operate, fit, compare."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from convsurgeon.base.errors import BudgetError, ExportError, LatencyError, WriteError
from convsurgeon.base.precision import Precision
from convsurgeon.calibration.collect import check_calibration, gather
from convsurgeon.calibration.dataset import Calibration
from convsurgeon.distill.reconstruct import reconstruct
from convsurgeon.fit.fidelity import Fidelity, fidelity
from convsurgeon.forms.catalogue import BUDGET_FORMS, CALIBRATED_FORMS, DEFAULT_FORMS
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture, capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.model_files import Model
from convsurgeon.graph.outputs import outputs
from convsurgeon.graph.state import undisturbed
from convsurgeon.graph.subgraphs import note_on_subgraphs
from convsurgeon.planning.candidates import plan_captured
from convsurgeon.planning.plan import Change, Plan, Skip
from convsurgeon.planning.select import Predicate
from convsurgeon.planning.surgery import operate
from convsurgeon.report.report import Report
from convsurgeon.report.rows import learnable_rows
from convsurgeon.runtime.latencies import Latencies
from convsurgeon.search.budget import Budget, check_precision
from convsurgeon.search.choice import Judged
from convsurgeon.search.confirm import Timing
from convsurgeon.search.fastest import fastest, hopeless
from convsurgeon.search.limit import Limit, Metric, check_within, limit_of
from convsurgeon.search.milliseconds import check_table, measured_here, speed_in_words, table_for
from convsurgeon.search.trial import appraise, best_forms, best_plan, opened, rate


@dataclass(frozen=True)
class Result:
    """A conversion: the new model, what was done to it, and the original it came from.

    `held_back` holds the calibration images that nothing was fitted to, of which `export` speaks; `made_up` those that
    the weights were fitted to, where they were made up: `export` and `recover` go on with them where they get none.
    """

    model: nn.Module
    plan: Plan
    report: Report
    original: nn.Module
    example: Example
    held_back: tuple[Example, ...] = ()
    made_up: tuple[Calibration, ...] = ()
    precision: Precision = "fp32"
    """Of the file that it was planned for, which `export` writes without being asked."""
    allowed: float = math.nan
    """Relative error of the output that the network was searched within; nan where it was made otherwise."""

    def with_metric(self, name: str, before: float, after: float) -> Result:
        """The result with one more line in its report."""
        return dataclasses.replace(self, report=self.report.with_metric(name, before, after))

    @property
    def changes(self) -> dict[str, Change]:
        """Name -> form, rank, lost, parameters and MACs before and after."""
        return self.plan.changes

    @property
    def judged(self) -> tuple[Judged, ...]:
        """Under a budget every plan that was weighed: how it was made, its cost and its error."""
        return self.report.judged

    @property
    def timings(self) -> tuple[Timing, ...]:
        """Under a latency budget every whole network that was timed: predicted, measured, and which was taken."""
        return self.report.timings

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """Every conv left alone, with the reason."""
        return self.plan.skipped


def convert(
    model: Model,
    example: object = None,
    *,
    forms: Sequence[Form] | None = None,
    policy: Predicate | None = None,
    budget: Budget | None = None,
    latencies: Latencies | None = None,
    allow_growth: bool = False,
    calibration: object = None,
    metric: Metric | None = None,
    within: float | str | None = None,
    better: str = "higher",
    precision: Precision = "fp32",
    images: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Rewrites the convs of a pretrained model into lighter forms, keeping what it learned.

    The input model is unchanged to the bit; the result has its class, device, dtype, memory format and mode, and is
    trainable. See `plan` for the first arguments and the errors.

    With calibration and nothing else that is the fastest network, measured on this machine, whose output is within
    `budget.limit.ALLOWED` of the original's; where that is not 1.1 times as fast the model comes back as it was, and
    `report.speed` says why.

    Args:
        model: any module that runs on the example, or the path of an ONNX file (see `onnxnet`).
        example: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`; not needed for a file
            whose sizes are fixed.
        forms: candidates for every site; the first that fits is taken, or with a budget the one it is best spent on.
            If not given, CP of many ranks, separable of few, and two 1x1 convs in the place of one; from the weights
            alone and without a budget separable keeping 95 % of the energy.
        policy: which sites may be touched; the default leaves the stem alone.
        budget: what the converted model may cost. Plans are made by several measures of a layer's error; with
            calibration the whole network's error on held-back images decides between them.
        latencies: measured milliseconds of every site; a `LatencyTable`. If not given and milliseconds are asked for,
            one is measured here, with one thread, and kept in the user's cache. A table of this machine also times the
            whole planned network; the plan is revised where that is not the sum of its parts, and `timings` says so.
        allow_growth: take a form even where it has more MACs or parameters than the conv. Under a latency budget
            milliseconds decide that: a head with one output is three times as fast in two convs, which are exact.
        calibration: unlabelled images to fit the weights to: a tensor, an iterable of batches or a `DataLoader`. If not
            given they are made up (see `synthetic_images`), which the report says first. False for none: the weights
            are then the best approximation of the kernels, which at low rank is not enough.
        metric: the user's own measure, model -> number, with `within`: the fastest model that loses no more of it.
        within: most to lose of the metric, in its unit (`1.0`) or as a share of the original's (`"1%"`); without a
            metric the relative error of the output, of what the network adds to its input where it is image to image.
        better: `"higher"` or `"lower"`: which metric is better.
        precision: of the file that is to ship, where the fastest network is searched for: `"fp32"` or `"int8"`. Its
            milliseconds are measured, its metric or error counts. A budget says it itself.
        images: how many of them to use at most.
        seed: of images that are made up, and of the output positions that are drawn from them.
        progress: whether to show bars.

    Raises:
        BudgetError: the budget cannot be reached; says how far it goes and which layers stand in the way. Or `within`
            cannot be read, or goes with a budget.
        ExportError, LatencyError: milliseconds are asked for, and the network has no ONNX form or cannot be timed.
        CalibrationError: the calibration data are empty, of another shape, or not finite; or there are none and the
            model's inputs are no images that could be made up.

    Returns:
        The converted model with its changes, skips, plan and report.
    """
    _check_precision(precision, budget, searching=within is not None or (calibration is not False and forms is None))
    if metric is not None or within is not None:
        check_within(budget, images=calibration is not False)
    check_calibration(calibration)
    before = capture(model, example)
    data = gather(before, calibration, seed=seed, progress=progress, limit=images)
    how = _How(policy, allow_growth, latencies, data, seed, progress, precision)
    if budget is not None:
        return _within_budget(before, BUDGET_FORMS if forms is None else forms, budget, how)
    if within is not None or metric is not None:
        assert data is not None  # as checked
        limit = limit_of(before.model, data.held_back, metric, within, better)
        return _fastest(before, BUDGET_FORMS if forms is None else forms, limit, how)
    if data is not None and forms is None:
        return _by_default(before, how)
    chosen = DEFAULT_FORMS if forms is None else forms
    return _carry_out(before, plan_captured(before, chosen, policy, allow_growth), data, seed, progress)


@dataclass(frozen=True)
class _How:
    """What a caller says beside the model and what it may cost."""

    policy: Predicate | None
    allow_growth: bool
    latencies: Latencies | None
    data: Calibration | None
    seed: int
    progress: bool
    precision: Precision


def _check_precision(precision: Precision, budget: Budget | None, searching: bool) -> None:
    """Refuses a precision that nothing is planned for, or that the budget says itself.

    Raises:
        BudgetError: it is one.
    """
    check_precision(precision)
    if precision != "fp32" and budget is not None:
        raise BudgetError(f"precision: the budget says it itself; pass Budget(..., precision={precision!r})")
    if precision != "fp32" and not searching:
        raise BudgetError(
            f"precision={precision!r}: nothing is planned here, so it changes nothing; "
            "pass a budget with it, within=, or calibration without forms"
        )


def _within_budget(before: Capture, forms: Sequence[Form], budget: Budget, how: _How) -> Result:
    table = table_for(budget, how.latencies, before, forms, how.policy, how.progress)
    growth = how.allow_growth or budget.latency is not None
    found = opened(before, forms, how.policy, growth)
    found = found if table is None or budget.latency is None else found.paying(table)
    rated = rate(found, how.data, how.seed, how.progress, budget.precision)
    best = best_plan(rated, budget, table, how.progress)
    result = _carry_out(before, best.plan, how.data, how.seed, how.progress)
    words = speed_in_words(before, result.plan, table, best.timings, budget.precision, how.progress)
    report = dataclasses.replace(result.report, judged=best.judged, timings=best.timings, speed=words)
    return dataclasses.replace(result, report=report, precision=budget.precision)


def _by_default(before: Capture, how: _How) -> Result:
    """The fastest within the error that is allowed; by MACs where the runtime cannot be asked."""
    assert how.data is not None
    try:
        return _fastest(before, BUDGET_FORMS, limit_of(before.model, how.data.held_back, None, None, "lower"), how)
    except (ExportError, LatencyError, WriteError) as error:
        found = appraise(before, CALIBRATED_FORMS, how.policy, how.allow_growth, how.data, how.seed, how.progress)
        result = _carry_out(before, best_forms(found), how.data, how.seed, how.progress)
        words = f"Milliseconds are not known, forms were chosen by MACs: {error}."
        report = dataclasses.replace(result.report, speed=words)
        return dataclasses.replace(result, report=report, precision=how.precision)


def _fastest(before: Capture, forms: Sequence[Form], limit: Limit, how: _How) -> Result:
    """The fastest network within a limit, or the model as it was."""
    check_table(how.latencies, how.precision)
    table = how.latencies or measured_here(before, forms, how.policy, how.progress, how.precision)
    found = opened(before, forms, how.policy, allow_growth=True)
    search = hopeless(found.base, found.options, table, limit)
    if search is None:
        rated = rate(found.paying(table), how.data, how.seed, how.progress, how.precision)
        search = fastest(rated, table, limit, how.progress)
    result = _carry_out(before, search.plan, how.data, how.seed, how.progress)
    report = dataclasses.replace(
        result.report, attempts=search.attempts, limit=search.limit, timings=search.timings, speed=search.sentence
    )
    allowed = math.nan if limit.metric else limit.most * limit.scale
    return dataclasses.replace(result, report=report, precision=how.precision, allowed=allowed)


def carry_out(
    model: Model,
    plan: Plan,
    example: object = None,
    *,
    calibration: object = None,
    images: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """`convert` with a plan that is already made, or loaded from a file.

    Raises:
        PlanError: the plan was made for another model.
        CaptureError: the model does not run on the example, or cannot be copied.
    """
    before = capture(model, example)
    data = gather(before, calibration, seed=seed, progress=progress, limit=images)
    return _carry_out(before, plan, data, seed, progress)


def _carry_out(before: Capture, wanted: Plan, data: Calibration | None, seed: int, progress: bool) -> Result:
    model, example = before.model, before.example
    converted, done = operate(model, wanted, example)
    fits = () if data is None or not done.changes else (reconstruct(before, converted, done, data, seed, progress),)
    with undisturbed(model):  # a closure that the copy holds may still run modules of the original
        after = capture(converted, example)
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    shown = example if data is None else data.held_back[0]  # real images say more than a made-up example
    values = () if on_meta else compared(model, converted, shown)
    tensors = learnable_rows(model, converted)
    parts = (before.cost, after.cost, done.steps, tensors, values, str(example))
    notes, held_back = ((), ()) if data is None else (data.notes, data.held_back)
    notes = (*notes, *note_on_subgraphs(model, example, fitted=bool(fits)))
    report = Report(*parts, reconstruction=fits, opaque=tuple(before.opaque.items()), notes=notes)
    made_up = (data,) if data is not None and data.synthetic else ()
    return Result(converted, done, report, model, example, held_back, made_up)


def compared(model: nn.Module, converted: nn.Module, example: Example) -> tuple[Fidelity, ...]:
    """Fidelity on an example, or none where nothing can be compared."""
    with undisturbed(model):
        return _compared(outputs(model, example), outputs(converted, example))


def _compared(original: list[Tensor], converted: list[Tensor]) -> tuple[Fidelity, ...]:
    """Fidelity, or none where nothing can be compared: no float outputs, or sizes that depend on the values."""
    shapes = [[tensor.shape for tensor in outs] for outs in (original, converted)]
    if shapes[0] != shapes[1] or not sum(tensor.numel() for tensor in original):
        return ()
    if not all(bool(tensor.isfinite().all()) for tensor in original):
        text = "the original's own output holds NaN or infinity; look at its weights and at the example"
        warnings.warn(f"fidelity: {text}", stacklevel=5)
    return (fidelity(original, converted),)
