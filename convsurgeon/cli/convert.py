"""The commands about a conversion: `inspect`, `plan`, `sweep`, `convert`."""

from __future__ import annotations

import argparse
from typing import Any

from convsurgeon.base.errors import BudgetError, CalibrationError
from convsurgeon.base.files import check_file
from convsurgeon.cli import options as shared
from convsurgeon.cli.output import check_output, write_output
from convsurgeon.cli.reading import read_forms, read_goal, read_images, read_metric, read_model, read_runtime
from convsurgeon.conversion import convert
from convsurgeon.forms.catalogue import BUDGET_FORMS, DEFAULT_FORMS
from convsurgeon.planning.candidates import plan
from convsurgeon.planning.inspection import inspect
from convsurgeon.planning.plan import Plan
from convsurgeon.search.goal import Within
from convsurgeon.search.sweep import SHARES, check_drawable, sweep

_NET = "net.py:factory --weights net.safetensors --input 1x3x32x32"


def add(commands: Any, name: str) -> None:
    """Add one of the commands."""
    {"inspect": _add_inspect, "plan": _add_plan, "sweep": _add_sweep, "convert": _add_convert}[name](commands)


def _add_inspect(commands: Any) -> None:
    command = shared.add_command(commands, "inspect", _inspect, [_NET, "detector.onnx"])
    shared.add_model(command)
    shared.add_json(command)


def _add_plan(commands: Any) -> None:
    examples = [f"{_NET} --rank 2", f"{_NET} --budget macs=0.3 --out plan.json"]
    command = shared.add_command(commands, "plan", _plan, examples)
    shared.add_model(command)
    shared.add_forms(command)
    shared.add_budget(command)
    shared.add_runtime(command)
    shared.add_output(command, "PLAN.json", "save the plan")
    shared.add_json(command)


def _add_sweep(commands: Any) -> None:
    examples = [f"{_NET} --calibrate photos/ --out curve.svg", f"{_NET} --calibrate photos/ --of latency"]
    command = shared.add_command(commands, "sweep", _sweep, examples)
    shared.add_model(command)
    shared.add_forms(command)
    shared.add_runtime(command)
    command.add_argument("--of", choices=("macs", "latency"), default="macs", help="kind of budget (default macs)")
    command.add_argument("--shares", nargs="+", type=float, default=SHARES, help="budgets, as shares of the original's")
    shared.add_images(command, "--calibrate", "images to fit the weights to; synthetic ones if not given")
    shared.add_metric(command, better=False)
    shared.add_output(command, "PLOT.svg", "draw the curve: .svg, .png or .pdf (needs matplotlib)")
    shared.add_json(command)


def _add_convert(commands: Any) -> None:
    examples = [
        f"{_NET} --calibrate photos/ --metric net.py:accuracy --out lighter/",
        "detector.onnx --calibrate photos/ --out lighter/",
    ]
    usual = ("weights", "input", "images", "mean", "std", "metric", "within", "budget", "minutes", "int8")
    command = shared.add_command(commands, "convert", _convert, examples, usual)
    shared.add_model(command)
    shared.add_forms(command)
    command.add_argument("--plan", metavar="PLAN.json", help="carry out a saved plan instead of making one")
    shared.add_budget(command)
    command.add_argument(
        "--within",
        metavar="1.0",
        help="most that may be lost of --metric: 1.0, or 1%% of it (if not given 0.3%%, or 2%% where lower is better)",
    )
    shared.add_metric(command)
    shared.add_images(
        command, "--calibrate", "images to fit the weights to; synthetic ones if not given; none: weights alone"
    )
    command.add_argument("--limit", type=int, default=1024, help="most images to use (default 1024)")
    command.add_argument("--minutes", type=float, help="most to search for; Ctrl-C, too, takes the best so far")
    shared.add_seed(command)
    shared.add_runtime(command)
    shared.add_bundle(command)
    shared.add_printing(command)


def _inspect(options: argparse.Namespace) -> object:
    table = inspect(*read_model(options))
    return table.records() if options.json else print(table.text())


def _plan(options: argparse.Namespace) -> object:
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


def _sweep(options: argparse.Namespace) -> object:
    if not all(0 < share <= 1 for share in options.shares):
        raise BudgetError("--shares: are shares of what the original has; pass numbers above 0 and up to 1")
    if options.images == shared.NONE:
        raise CalibrationError("--calibrate none: without images no plan can be judged; leave it out")
    if options.out:
        check_drawable(options.out)
        check_file(options.out, options.force)
    model, example = read_model(options)
    found = sweep(
        model,
        example,
        calibration=read_images(options),
        shares=options.shares,
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


def _convert(options: argparse.Namespace) -> object:
    calibration = False if options.images == shared.NONE else read_images(options, options.limit)
    check_output(options, calibration)
    metric, runtime = read_metric(options), read_runtime(options)
    goal, forms = read_goal(options, metric), Plan.load(options.plan) if options.plan else read_forms(options)
    model, example = read_model(options)
    beside = None if metric is None or isinstance(goal, Within) else Within(None, metric, options.better)
    if beside is not None:
        beside = beside.resolve(model, ())  # a metric that fails does so before the work
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
