"""The command line: parse, call, print. Exit 0 for success, 1 for an error (one line on stderr), 2 for usage."""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from convsurgeon.base import world
from convsurgeon.base.errors import BudgetError, CalibrationError, ConvSurgeonError, LoadError, described
from convsurgeon.base.files import check_file
from convsurgeon.budget.budget import Budget
from convsurgeon.budget.sweep import SHARES, check_drawable, sweep
from convsurgeon.cli.deploy import add_bench, add_export, check_export, export_bundle, print_bundle, run_bench
from convsurgeon.cli.device import (
    add_device,
    add_latencies,
    add_milliseconds,
    latencies,
    shown_milliseconds,
    write_device,
)
from convsurgeon.cli.recover import add_recovery, check_recovery, run_recovery
from convsurgeon.conversion import Result, carry_out, convert
from convsurgeon.fit.images import load_images
from convsurgeon.forms.catalogue import FORMS, BlueprintSubspace
from convsurgeon.forms.form import Branched, Energy, Rule, Share
from convsurgeon.graph.example import Example
from convsurgeon.graph.load import load_function, load_model, load_weights
from convsurgeon.plan.candidates import plan
from convsurgeon.plan.inspection import inspect
from convsurgeon.plan.plan import Plan
from convsurgeon.plan.policy import Policy, default_policy
from convsurgeon.plan.policy_text import parse_policy

_WORDS = {form.word: form for form in FORMS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the console script's entry point."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
        return 0
    except ConvSurgeonError as error:
        return _fail(str(error))
    except KeyboardInterrupt as stop:
        return _fail(f"interrupted; {stop}" if str(stop) else "interrupted; nothing was written")
    except BrokenPipeError:  # `| head` went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            raise
        if isinstance(error, OSError) and error.filename is not None:  # a name that is too long, a loop of links, ...
            return _fail(f"{str(error.filename)[:200]}: {error.strerror}; choose another path")
        return _fail(f"internal error, {described(error)}; --debug shows where, please report it")


def _fail(message: str) -> int:
    print("convsurgeon: " + " ".join(message.split("\n")), file=sys.stderr)
    return 1


def _inspect(options: argparse.Namespace) -> None:
    table = inspect(*_model_and_example(options))
    print(json.dumps(table.records(), indent=1) if options.json else table.text())


def _plan(options: argparse.Namespace) -> None:
    choices = _choices(options)
    make = plan if "budget" not in choices else _plan_within
    model, example = _model_and_example(options)
    made = make(model, example, **choices, **latencies(options, model, example, choices))
    if options.out:
        made.save(options.out, overwrite=options.force)
    print(json.dumps(made.to_dict(), indent=1) if options.json else made)


def _plan_within(model: nn.Module, example: Example, **choices: Any) -> Plan:
    return convert(model, example, **choices).plan


def _convert(options: argparse.Namespace) -> None:
    check_export(options)
    model, example = _model_and_example(options)
    metric = load_function(options.metric) if options.metric else None
    with _stages(options) as stage:
        stage("converting")
        planned = Plan.load(options.plan) if options.plan else None
        data = _calibration(options, example)
        if planned is None:
            choices = _choices(options)
            result = convert(model, example, **choices, **latencies(options, model, example, choices), **data)
        else:
            result = carry_out(model, planned, example, **data)
        if metric is not None:
            stage("metric")
            values = [_measure(options.metric, metric, network) for network in (result.original, result.model)]
            result = result.with_metric(options.metric.rpartition(":")[2], *values)
        bundles = [export_bundle(options, result, data.get("calibration"), stage)] if options.out else []
    _print_result(options, result, bundles)


def _device(options: argparse.Namespace) -> None:
    choices = _choices(options)
    write_device(options, *_model_and_example(options), choices)


def _sweep(options: argparse.Namespace) -> None:
    if options.budget or not all(0 < share <= 1 for share in options.shares):
        raise BudgetError(
            "sweep: the budgets are --shares of the MACs, each above 0 and up to 1; --budget is for convert"
        )
    if not options.calibrate:
        raise CalibrationError("sweep: --calibrate is needed: without images no plan can be judged")
    if options.out:
        check_drawable(options.out)
        check_file(options.out, options.force)
    model, example = _model_and_example(options)
    metric = load_function(options.metric) if options.metric else None
    measured = None if metric is None else partial(_measure, options.metric, metric)
    choices = _choices(options)
    times = shown_milliseconds(options, model, example, choices)
    data = _calibration(options, example)
    found = sweep(model, example, shares=options.shares, metric=measured, **choices, **times, **data)
    print(json.dumps(found.table.records(), indent=1) if options.json else found)
    if options.out:
        found.draw(options.out, overwrite=options.force)


def _recover(options: argparse.Namespace) -> None:
    check_recovery(options)
    check_export(options)
    metric = load_function(options.metric) if options.metric else None
    with world.joined():
        model, example = _model_and_example(options)
        choices = _choices(options)
        late = partial(latencies, options, model, example, choices)
        converted, result, images = run_recovery(options, model, example, choices, late)
        if world.rank():
            return
    with _stages(options) as stage:
        if metric is not None:
            stage("metric")
            name = options.metric.rpartition(":")[2]
            networks = (result.original, converted.model, result.model)
            original, before, after = (_measure(options.metric, metric, network) for network in networks)
            result = result.with_metric(f"{name}, as converted", original, before).with_metric(name, original, after)
        bundles = [export_bundle(options, result, images, stage)] if options.out else []
    _print_result(options, result, bundles)


def _print_result(options: argparse.Namespace, result: Result, bundles: list[Any]) -> None:
    """The report, and what was found about the bundle if one was written."""
    if options.json:
        values = {"report": result.report.to_dict()}
        for bundle in bundles:
            values["deployment"] = bundle.deployment.to_dict()
        print(json.dumps(values, indent=1))
        return
    print(result.report)
    for bundle in bundles:
        print_bundle(bundle, result)


@contextmanager
def _stages(options: argparse.Namespace) -> Iterator[Any]:
    """A line that says what is being done, gone afterwards; silent where stderr is no terminal."""
    with tqdm(bar_format="{desc} [{elapsed}]", disable=True if options.json else None, leave=False) as bar:
        yield bar.set_description_str


def _measure(name: str, metric: Any, model: nn.Module) -> float:
    try:
        return float(metric(model))
    except Exception as error:  # the user's own code
        raise LoadError(f"{name}: the metric fails ({described(error)}); it takes a model, gives a number") from error


def _model_and_example(options: argparse.Namespace) -> tuple[nn.Module, Example]:
    model = load_model(options.model, dict(options.model_args))
    if options.weights:
        load_weights(model, options.weights)
    generator = torch.Generator().manual_seed(0)
    return model.eval(), Example(tuple(torch.randn(shape, generator=generator) for shape in options.input))


def _calibration(options: argparse.Namespace, example: Example) -> dict[str, Any]:
    """What the command line says of calibration, as keyword arguments of `convert`."""
    if not options.calibrate:
        return {}
    images = load_images(
        options.calibrate, tuple(example.tensors()[0].shape), options.mean, options.std, options.images
    )
    return {"calibration": images, "images": options.images, "seed": options.seed, "progress": not options.json}


def _choices(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of forms and policy, as keyword arguments of `plan`."""
    choices: dict[str, Any] = {"policy": options.select, "allow_growth": options.allow_growth}
    if options.budget is not None:
        choices["budget"] = options.budget
    if options.form or options.rank or options.energy or options.share:
        ranks = [*options.rank, *map(Energy, options.energy), *map(Share, options.share)] or [1]
        choices["forms"] = [
            _form(word, rank, options.width) for word in options.form or ["separable"] for rank in ranks
        ]
    return choices


def _form(word: str, rank: int | Rule, width: float) -> Branched:
    return BlueprintSubspace(rank=rank, width=width) if word == BlueprintSubspace.word else _WORDS[word](rank=rank)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="convsurgeon", description="Lighter CNNs from pretrained ones.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shows = _command(
        commands, "inspect", _inspect, "every conv, what it costs, and the energy it keeps at rank 1, 2, 3"
    )
    _add_model(shows)
    plans = _command(commands, "plan", _plan, "what would become of every conv, and what that would cost")
    _add_planning(plans)
    _add_file(plans, "PLAN.json", "save the plan")
    converts = _command(commands, "convert", _convert, "rewrite, report, export to ONNX, check and time")
    _add_planning(converts)
    _add_outputs(converts)
    sweeps = _command(commands, "sweep", _sweep, "the trade-off between MACs and error, one budget after the other")
    _add_model(sweeps)
    _add_choices(sweeps)
    _add_calibration(sweeps)
    add_milliseconds(sweeps)
    sweeps.add_argument("--shares", nargs="+", type=float, default=SHARES, help="budgets, as shares of the MACs")
    _add_file(sweeps, "PLOT.svg", "draw the curve: .svg, .png or .pdf (needs matplotlib)")
    recovers = _command(commands, "recover", _recover, "train a converted model to answer as its original, no labels")
    _add_planning(recovers)
    _add_reading(recovers)
    add_recovery(recovers)
    add_export(recovers)
    device = _command(
        commands, "device", _device, "a folder to take to a device, with a script that times layers there"
    )
    _add_model(device)
    _add_choices(device)
    add_device(device)
    bench = _command(commands, "bench", run_bench, "time ONNX files against the first one, in interleaved pairs")
    add_bench(bench)
    return parser


def _command(commands: Any, name: str, run: Any, words: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=words, description=words[0].upper() + words[1:] + "."
    )
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    command.add_argument("--debug", action="store_true", help="show the traceback of an internal error")
    return command


def _add_planning(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    _add_choices(command)
    add_latencies(command)


def _add_file(command: argparse.ArgumentParser, metavar: str, words: str) -> None:
    command.add_argument("--out", metavar=metavar, help=words)
    command.add_argument("--force", action="store_true", help="replace an existing file")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model", metavar="MODEL", help="package.module:factory, file.py:factory, torchvision:NAME, timm:NAME"
    )
    command.add_argument(
        "--model-args", nargs="+", default=[], type=_assignment, metavar="NAME=VALUE", help="for the factory"
    )
    command.add_argument("--weights", metavar="FILE", help="safetensors, or a checkpoint of plain tensors")
    command.add_argument(
        "--input",
        nargs="+",
        type=_shape,
        required=True,
        metavar="1x3x224x224",
        help="shape of every input, batch first",
    )


def _add_choices(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--form", nargs="+", default=[], choices=list(_WORDS), help="candidates, the first that fits is taken"
    )
    command.add_argument("--rank", nargs="+", default=[], type=int, help="branches per layer")
    command.add_argument(
        "--energy", nargs="+", default=[], type=float, help="or the share of every kernel's energy to keep"
    )
    command.add_argument("--share", nargs="+", default=[], type=float, help="or of every layer's MACs")
    command.add_argument(
        "--budget",
        type=_budget,
        metavar="macs=0.5",
        help="what the model may cost: macs=, params=, bytes=, latency= as shares or amounts (params=20M), "
        "latency=faster, or lost= for the cheapest within an error; all of --form and --rank are candidates then",
    )
    command.add_argument("--width", type=float, default=0.25, help="inner width of the subspace form (default 0.25)")
    command.add_argument(
        "--select",
        type=_policy,
        default=default_policy(),
        metavar="POLICY",
        help="for example 'kernel_size(3) & min_channels(32) & ~named(layer4.*)'; everything but the stem if not given",
    )
    command.add_argument("--allow-growth", action="store_true", help="also where a layer gets more expensive")


def _add_outputs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--plan", metavar="PLAN.json", help="carry out a saved plan instead of making one")
    _add_calibration(command)
    add_export(command)


def _add_calibration(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--calibrate", metavar="IMAGES", help="folder of images, .npy or .npz: fit the weights to them"
    )
    _add_reading(command)


def _add_reading(command: argparse.ArgumentParser) -> None:
    command.add_argument("--mean", nargs="+", type=float, default=[], help="subtracted from every channel in [0, 1]")
    command.add_argument("--std", nargs="+", type=float, default=[], help="divides every channel then")
    command.add_argument("--images", type=int, default=1024, help="most images to calibrate on (default 1024)")
    command.add_argument("--seed", type=int, default=0, help="of the positions drawn from them (default 0)")
    command.add_argument("--metric", metavar="FILE.py:FUNCTION", help="model -> number, printed before and after")


def _budget(text: str) -> Budget:
    try:
        return Budget.parse(text)
    except ConvSurgeonError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) if part.isdecimal() and len(part) < 10 else 0 for part in text.lower().split("x"))
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no shape; write for example 1x3x224x224")
    return sizes


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _policy(text: str) -> Policy:
    try:
        return parse_policy(text)
    except ConvSurgeonError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
