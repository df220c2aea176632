"""From parsed options to what the package takes: model, images, forms, goal, runtime, metric."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import BudgetError, LoadError, describe
from convsurgeon.calibration.images import Images
from convsurgeon.cli.options import NONE
from convsurgeon.forms.catalogue import FORMS
from convsurgeon.forms.form import Form
from convsurgeon.graph.example import Example
from convsurgeon.graph.load import load_function, load_model, load_weights
from convsurgeon.graph.model_files import open_model
from convsurgeon.planning.linear import linear_as_conv
from convsurgeon.runtime.runtime import Runtime
from convsurgeon.search.goal import Goal, Within
from convsurgeon.search.metric import Metric


def read_model(options: argparse.Namespace) -> tuple[nn.Module, Example]:
    """Return the model with its weights, in eval mode, and noise of the inputs' shapes."""
    if options.model.lower().endswith(".onnx"):
        return _read_onnx(options)
    if not options.input:
        raise LoadError("--input: a model of Python needs the shape of its inputs; for example --input 1x3x224x224")
    if named := [name for name, _ in options.input if name]:
        raise LoadError(f"--input {named[0]}=: names are for ONNX files; pass the shapes in the order of forward")
    model = load_model(options.model)
    if options.weights:
        load_weights(model, options.weights)
    generator = torch.Generator().manual_seed(0)
    example = _make_example(
        model,
        [torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") for _, shape in options.input],
    )
    if options.linear is not None:
        model = linear_as_conv(model.eval(), example, options.linear or "*")
    return model.eval(), example


def _read_onnx(options: argparse.Namespace) -> tuple[nn.Module, Example]:
    if options.linear is not None:
        raise LoadError(f"{options.model}: in an ONNX file only convs are rewritten; leave out --linear")
    if options.weights:
        raise LoadError(f"{options.model}: an ONNX file has its weights in it; leave out --weights")
    model, example = open_model(
        options.model, shapes={name or place: shape for place, (name, shape) in enumerate(options.input)}
    )
    return model, Example.of(example)


def _make_example(model: nn.Module, tensors: list[Tensor]) -> Example:
    """Return the inputs as arguments in the order of `forward`, by name where it takes them only by name."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    places = sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)
    if len(tensors) <= places or len(tensors) > places + len(named):
        return Example(tuple(tensors))
    return Example(tuple(tensors[:places]), dict(zip(named, tensors[places:], strict=False)))


def read_images(options: argparse.Namespace, limit: int | None = None) -> Images:
    """Return the images that the command line names; synthetic ones if it names none."""
    return Images(options.images, mean=options.mean, std=options.std, limit=limit, trusted=options.trusted)


def read_forms(options: argparse.Namespace) -> list[Form] | None:
    """Return the candidates; None if neither a form nor a rank is given."""
    if not options.form and not options.rank:
        return None
    words = {form.word: form for form in FORMS}
    return [words[word](rank=rank) for word in options.form or ["separable"] for rank in options.rank or [1]]


def read_goal(options: argparse.Namespace, metric: Metric | None) -> Goal | None:
    """Return the budget or the tolerance that was asked for; a metric alone asks for the default's tolerance of it."""
    if options.within is not None and options.budget is not None:
        raise BudgetError("--within: it asks for the fastest network, --budget for a cost; leave one of them out")
    by_hand = options.budget or options.plan or options.form or options.rank or options.images == NONE
    if options.within is None and (metric is None or by_hand):
        goal: Goal | None = options.budget
        return goal
    return Within(options.within, metric, options.better)


def read_runtime(options: argparse.Namespace) -> Runtime:
    """Return where the network will run: this machine, or the device that a file was measured on."""
    if options.device:
        return Runtime.load(options.device, precision=options.precision)
    threads = 1 if options.threads is None else options.threads
    return Runtime(threads, options.precision, options.provider, dict(options.options))


def read_metric(options: argparse.Namespace) -> Metric | None:
    """Return the user's measure of a model, under its own name, if one was given."""
    if not options.metric:
        return None
    function: Any = load_function(options.metric)

    def metric(model: nn.Module) -> Any:
        try:
            return function(model)
        except (Exception, SystemExit) as error:  # the user's own code
            text = f"{options.metric}: the metric fails ({describe(error)}); it takes a model and gives a number"
            raise LoadError(text) from error

    metric.__name__ = options.metric.rpartition(":")[2]
    return metric
