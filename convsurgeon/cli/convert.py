"""The commands about a conversion: `inspect`, `plan`, `sweep`, `convert`."""

from __future__ import annotations

import argparse

from convsurgeon.base.errors import BudgetError, CalibrationError
from convsurgeon.base.files import check_file
from convsurgeon.cli.options import NONE
from convsurgeon.cli.output import check_output, write_output
from convsurgeon.cli.reading import read_forms, read_goal, read_images, read_metric, read_model, read_runtime
from convsurgeon.conversion import convert
from convsurgeon.forms.catalogue import BUDGET_FORMS, DEFAULT_FORMS
from convsurgeon.planning.candidates import plan
from convsurgeon.planning.inspection import inspect
from convsurgeon.planning.plan import Plan
from convsurgeon.search.goal import Within
from convsurgeon.search.sweep import SHARES, check_drawable, sweep


def run_inspect(options: argparse.Namespace) -> object:
    """Print what every conv costs."""
    table = inspect(*read_model(options))
    return table.records() if options.json else print(table.text())


def run_plan(options: argparse.Namespace) -> object:
    """Print what would become of every conv."""
    model, example = read_model(options)
    forms = read_forms(options)
    if options.budget is None:
        made = plan(model, example, forms=forms or DEFAULT_FORMS, policy=options.select)
    else:
        made = convert(
            model,
            example,
            calibration=False,
            forms=forms,
            policy=options.select,
            goal=options.budget,
            runtime=read_runtime(options),
            progress=not options.json,
        ).plan
    if options.out:
        made.save(options.out, overwrite=options.force)
    return made.to_dict() if options.json else print(made)


def run_sweep(options: argparse.Namespace) -> object:
    """Print what each budget costs in error."""
    shares = options.shares or SHARES
    if not all(0 < share <= 1 for share in shares):
        raise BudgetError("--shares: are shares of what the original has; pass numbers above 0 and up to 1")
    if options.images == NONE:
        raise CalibrationError("--calibrate none: without images no plan can be judged; leave it out")
    if options.out:
        check_drawable(options.out)
        check_file(options.out, options.force)
    model, example = read_model(options)
    found = sweep(
        model,
        example,
        calibration=read_images(options),
        shares=shares,
        kind=options.of,
        forms=read_forms(options) or BUDGET_FORMS,
        policy=options.select,
        metric=read_metric(options),
        runtime=read_runtime(options),
        progress=not options.json,
    )
    if options.out:
        found.draw(options.out, overwrite=options.force)
    return found.table.records() if options.json else print(found)


def run_convert(options: argparse.Namespace) -> object:
    """Convert, export and print."""
    calibration = False if options.images == NONE else read_images(options, options.limit)
    check_output(options, calibration)
    metric, runtime = read_metric(options), read_runtime(options)
    goal, forms = read_goal(options, metric), Plan.load(options.plan) if options.plan else read_forms(options)
    model, example = read_model(options)
    beside = None if metric is None or isinstance(goal, Within) else Within(None, metric, options.better)
    if beside is not None:
        beside = beside.resolve(model)  # a metric that fails does so before the work
    result = convert(
        model,
        example,
        calibration=calibration,
        forms=forms,
        policy=options.select,
        goal=goal,
        runtime=runtime,
        minutes=options.minutes,
        seed=options.seed,
        progress=not options.json,
    )
    if beside is not None:
        result = result.judged_by(beside)
    return write_output(options, result, calibration)
