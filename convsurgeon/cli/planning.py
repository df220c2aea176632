"""Commands that only look and decide: `inspect`, `plan`, `sweep`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from convsurgeon.base.errors import BudgetError, CalibrationError
from convsurgeon.base.files import check_file
from convsurgeon.cli.options import (
    NONE,
    add_calibration,
    add_choices,
    add_command,
    add_file,
    add_model,
    add_precision,
    group,
)
from convsurgeon.cli.reading import calibration, choices, metric_of, model_and_example, runtime_of
from convsurgeon.cli.timing import add_latencies, add_milliseconds
from convsurgeon.conversion import convert
from convsurgeon.forms.catalogue import BUDGET_FORMS
from convsurgeon.graph.capture import capture
from convsurgeon.planning.candidates import plan
from convsurgeon.planning.inspection import inspect
from convsurgeon.search.sweep import SHARES, check_drawable, sweep


def add(commands: Any) -> None:
    """Adds the commands."""
    shows = add_command(
        commands, "inspect", _inspect, "every conv, what it costs, and the energy it keeps at rank 1, 2, 3"
    )
    add_model(shows)
    plans = add_command(commands, "plan", _plan, "what would become of every conv, and what that would cost")
    add_planning(plans)
    add_file(plans, "PLAN.json", "save the plan")
    sweeps = add_command(commands, "sweep", _sweep, "the trade-off between MACs and error, one budget after the other")
    add_model(sweeps)
    add_choices(sweeps)
    add_calibration(sweeps)
    add_milliseconds(sweeps)
    add_precision(sweeps)
    group(sweeps, "budget").add_argument(
        "--shares", nargs="+", type=float, default=SHARES, help="budgets, as shares of the MACs or of the latency"
    )
    add_file(sweeps, "PLOT.svg", "draw the curve: .svg, .png or .pdf (needs matplotlib)")


def add_planning(command: argparse.ArgumentParser) -> None:
    """Options of everything that makes a plan."""
    add_model(command)
    add_choices(command)
    add_latencies(command)
    add_precision(command)


def _inspect(options: argparse.Namespace) -> None:
    table = inspect(*model_and_example(options))
    print(json.dumps(table.records(), indent=1) if options.json else table.text())


def _plan(options: argparse.Namespace) -> None:
    chosen = choices(options)
    model, example = model_and_example(options)
    if options.budget is None:
        made = plan(model, example, **chosen)
    else:
        how = {"goal": options.budget, "runtime": runtime_of(options), "progress": not options.json}
        made = convert(model, example, calibration=False, **chosen, **how).plan
    if options.out:
        made.save(options.out, overwrite=options.force)
    print(json.dumps(made.to_dict(), indent=1) if options.json else made)


def _sweep(options: argparse.Namespace) -> None:
    if options.budget or not all(0 < share <= 1 for share in options.shares):
        raise BudgetError(
            "sweep: the budgets are --shares of MACs (or --of latency), above 0 and up to 1; --budget is for convert"
        )
    if options.calibrate == NONE:
        raise CalibrationError("sweep: --calibrate none: without images no plan can be judged; leave it out")
    if options.out:
        check_drawable(options.out)
        check_file(options.out, options.force)
    model, example = model_and_example(options)
    metric = metric_of(options)
    chosen = choices(options)
    runtime = runtime_of(options)
    if options.milliseconds and runtime.table is None:
        forms = chosen.get("forms", BUDGET_FORMS)
        table = runtime.measure(capture(model, example), forms, options.select, progress=not options.json)
        runtime = dataclasses.replace(runtime, table=table)
    data = calibration(options)
    del data["seed"]
    found = sweep(
        model,
        example,
        shares=options.shares,
        kind=options.of,
        metric=None if metric is None else metric[1],
        runtime=runtime,
        **chosen,
        **data,
    )
    print(json.dumps(found.table.records(), indent=1) if options.json else found)
    if options.out:
        found.draw(options.out, overwrite=options.force)
