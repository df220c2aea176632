"""From parsed options to what the package takes: the model and its example, images, forms and policy, a metric."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from convsurgeon.base.errors import BudgetError, LoadError, describe
from convsurgeon.calibration.images import Images
from convsurgeon.cli.options import NONE, WORDS
from convsurgeon.forms.form import Form
from convsurgeon.forms.ranks import Energy, Rule, Share
from convsurgeon.graph.example import Example
from convsurgeon.graph.load import load_function, load_model, load_weights
from convsurgeon.graph.model_files import is_onnx, open_model
from convsurgeon.planning.linear import linear_as_conv
from convsurgeon.runtime.runtime import Runtime
from convsurgeon.search.goal import Goal, Metric, Within


def model_and_example(options: argparse.Namespace) -> tuple[nn.Module, Example]:
    """The model with its weights, in eval mode, and noise of the inputs' shapes.

    Raises:
        LoadError: no such model, or no shape for a model that needs one.
        CaptureError: the size of an ONNX file's input is open, and was not said; or no linear layer can be a conv.
        PolicyError: `--linear` names no linear layer.
    """
    need = 4 * sum(math.prod(shape) for _, shape in options.input)
    if need > (most := _memory_bytes()):
        raise LoadError(
            f"--input: {need / 1e9:,.1f} GB of values, this machine has {most / 1e9:,.1f} GB; pass smaller shapes"
        )
    if is_onnx(options.model):
        return _network(options)
    if not options.input:
        raise LoadError("--input: a model of Python needs the shape of its inputs; for example --input 1x3x224x224")
    if named := [name for name, _ in options.input if name]:
        raise LoadError(f"--input {named[0]}=: names are for ONNX files; pass the shapes in the order of forward")
    model = load_model(options.model, dict(options.model_args))
    if options.weights:
        load_weights(model, options.weights)
    generator = torch.Generator().manual_seed(0)
    example = _example(model, [torch.randn(shape, generator=generator) for _, shape in options.input])
    if options.linear is not None:
        model = linear_as_conv(model.eval(), example, options.linear or "*")
    return model.eval(), example


def _network(options: argparse.Namespace) -> tuple[nn.Module, Example]:
    """The network of an ONNX file; of inputs whose size was not said the file must say it."""
    if options.linear is not None:
        raise LoadError(f"{options.model}: in an ONNX file only convs are rewritten; leave out --linear")
    if options.weights or options.model_args:
        raise LoadError(f"{options.model}: an ONNX file has its weights in it; leave out --weights and --model-args")
    shapes: dict[str | int, tuple[int, ...]] = {
        name or place: shape for place, (name, shape) in enumerate(options.input)
    }
    model, example = open_model(options.model, shapes=shapes)
    return model, Example.of(example)


def _memory_bytes() -> float:
    """Of this machine; where it does not tell, no end."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _example(model: nn.Module, tensors: list[Tensor]) -> Example:
    """The inputs as arguments in the order of `forward`, those by name that it takes only so."""
    taken = inspect.signature(model.forward).parameters.values()
    named = [one.name for one in taken if one.kind is one.KEYWORD_ONLY]
    places = sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in taken)
    if len(tensors) <= places or len(tensors) > places + len(named):
        return Example(tuple(tensors))
    return Example(tuple(tensors[:places]), dict(zip(named, tensors[places:], strict=False)))


def calibration(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of calibration, as keyword arguments of `convert`.

    Raises:
        CalibrationError: the images cannot be read, or have a mean where there are several inputs.
    """
    given = {"seed": options.seed, "progress": not options.json}
    if options.calibrate == NONE:
        return {"calibration": False, **given}
    return {"calibration": images_of(options, options.images), **given}


def images_of(options: argparse.Namespace, limit: int) -> Images:
    """Return the images that the command line names; synthetic ones if it names none."""
    last = True if options.layout == "nhwc" else None
    return Images(
        options.calibrate or None, mean=options.mean or None, std=options.std or None, limit=limit, channels_last=last
    )


def choices(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the command line says of forms and policy, as keyword arguments of `convert`."""
    made: dict[str, Any] = {"policy": options.select}
    if options.form or options.rank or options.energy or options.share:
        ranks = [*options.rank, *map(Energy, options.energy), *map(Share, options.share)] or [1]
        made["forms"] = [_form(word, rank, options.width) for word in options.form or ["separable"] for rank in ranks]
    return made


def goal_of(options: argparse.Namespace, metric: tuple[str, Metric] | None = None) -> Goal | None:
    """Return the budget or the tolerance that was asked for.

    Raises:
        BudgetError: both were.
    """
    within = getattr(options, "within", None)
    if within is None:
        goal: Goal | None = options.budget
        return goal
    if options.budget is not None:
        raise BudgetError("--within: asks for the fastest network and goes with no --budget; leave one of them out")
    tolerance = within if within.endswith("%") else _number(within)
    return Within(tolerance) if metric is None else Within(tolerance, _named(*metric), options.better)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def runtime_of(options: argparse.Namespace) -> Runtime:
    """Return where the network will run: this machine, or the device that a file was measured on.

    Raises:
        LatencyError: the file is damaged, or of another precision.
    """
    if getattr(options, "device", None):
        return Runtime.load(options.device, precision=options.precision)
    threads = getattr(options, "threads", None) or 1
    return Runtime(threads=threads, precision=options.precision, cache=getattr(options, "cache", None))


def metric_of(options: argparse.Namespace) -> tuple[str, Metric] | None:
    """The user's measure of a model with its name, if one was given.

    Raises:
        LoadError: there is no such function; or later, when it is called, that it fails.
    """
    if not options.metric:
        return None
    function = load_function(options.metric)

    def measured(model: nn.Module) -> float:
        try:
            return float(function(model))
        except (Exception, SystemExit) as error:  # the user's own code
            text = f"{options.metric}: the metric fails ({describe(error)}); it takes a model, gives a number"
            raise LoadError(text) from error

    return options.metric.rpartition(":")[2], measured


def _named(name: str, metric: Metric) -> Metric:
    """The metric under the name that reports call it by."""
    metric.__name__ = name
    return metric


@contextmanager
def stages(options: argparse.Namespace) -> Iterator[Any]:
    """A line that says what is being done, gone afterwards; silent where stderr is no terminal."""
    with tqdm(bar_format="{desc} [{elapsed}]", disable=True if options.json else None, leave=False) as bar:
        yield bar.set_description_str


def _form(word: str, rank: int | Rule, width: float) -> Form:
    """A form by its word; those that have a width take it."""
    kind = WORDS[word]
    more: dict[str, Any] = {"width": width} if "width" in {item.name for item in dataclasses.fields(kind)} else {}
    return kind(rank=rank, **more)
