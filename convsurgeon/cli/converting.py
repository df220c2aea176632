"""The `convert` command, and how a result is printed."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from convsurgeon.cli.bundles import add_export, check_output, export_bundle, print_bundle
from convsurgeon.cli.options import add_calibration, add_command, add_within, group
from convsurgeon.cli.planning import add_planning
from convsurgeon.cli.reading import (
    calibration,
    choices,
    goal_of,
    metric_of,
    model_and_example,
    runtime_of,
    stages,
)
from convsurgeon.conversion import Result, convert
from convsurgeon.planning.plan import Plan


def add(commands: Any) -> None:
    """Adds the command."""
    command = add_command(commands, "convert", _convert, "rewrite, report, export to ONNX, check and time")
    add_planning(command)
    add_within(command)
    group(command, "what to change").add_argument(
        "--plan", metavar="PLAN.json", help="carry out a saved plan instead of making one"
    )
    add_calibration(command)
    add_export(command)


def _convert(options: argparse.Namespace) -> None:
    check_output(options)
    model, example = model_and_example(options)
    metric = metric_of(options)
    with stages(options) as stage:
        stage("converting")
        chosen = choices(options) | {"goal": goal_of(options, metric)}
        if options.plan:
            chosen = {"forms": Plan.load(options.plan)}
        data = calibration(options)
        result = convert(model, example, **chosen, runtime=runtime_of(options), **data)
        if metric is not None:
            stage("metric")
            name, measured = metric
            result = result.with_metric(name, measured(result.original), measured(result.model))
        bundles = [export_bundle(options, result, data.get("calibration"))] if options.out else []
    print_result(options, result, bundles)


def print_result(options: argparse.Namespace, result: Result, bundles: list[Any]) -> None:
    """The report, and what was found about the bundle if one was written."""
    if options.json:
        values = {"report": result.report.to_dict()}
        for bundle in bundles:
            values["deployment"] = bundle.to_dict()
        print(msgspec.json.format(msgspec.json.encode(values), indent=1).decode())
        return
    print(result.report)
    for bundle in bundles:
        print_bundle(bundle, result)
