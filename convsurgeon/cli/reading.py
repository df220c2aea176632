"""From parsed options to what the package takes: the model and its example, images, forms and policy, a metric."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from convsurgeon.base.errors import LoadError, described
from convsurgeon.cli.options import WORDS
from convsurgeon.fit.images import load_images
from convsurgeon.forms.branched import Branched
from convsurgeon.forms.ranks import Energy, Rule, Share
from convsurgeon.graph.example import Example
from convsurgeon.graph.load import load_function, load_model, load_weights

Metric = Callable[[nn.Module], float]


def model_and_example(options: argparse.Namespace) -> tuple[nn.Module, Example]:
    """The model with its weights, in eval mode, and noise of the inputs' shapes."""
    need = 4 * sum(math.prod(shape) for shape in options.input)
    if need > (most := _memory_bytes()):
        raise LoadError(
            f"--input: {need / 1e9:,.1f} GB of values, this machine has {most / 1e9:,.1f} GB; pass smaller shapes"
        )
    model = load_model(options.model, dict(options.model_args))
    if options.weights:
        load_weights(model, options.weights)
    generator = torch.Generator().manual_seed(0)
    return model.eval(), Example(tuple(torch.randn(shape, generator=generator) for shape in options.input))


def _memory_bytes() -> float:
    """Of this machine; where it does not tell, no end."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def calibration(options: argparse.Namespace, example: Example) -> dict[str, Any]:
    """What the command line says of calibration, as keyword arguments of `convert`."""
    if not options.calibrate:
        return {}
    images = load_images(
        options.calibrate, tuple(example.tensors()[0].shape), options.mean, options.std, options.images
    )
    return {"calibration": images, "images": options.images, "seed": options.seed, "progress": not options.json}


def choices(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of forms and policy, as keyword arguments of `plan`."""
    made: dict[str, Any] = {"policy": options.select, "allow_growth": options.allow_growth}
    if options.budget is not None:
        made["budget"] = options.budget
    if options.form or options.rank or options.energy or options.share:
        ranks = [*options.rank, *map(Energy, options.energy), *map(Share, options.share)] or [1]
        made["forms"] = [_form(word, rank, options.width) for word in options.form or ["separable"] for rank in ranks]
    return made


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
        except Exception as error:  # the user's own code
            text = f"{options.metric}: the metric fails ({described(error)}); it takes a model, gives a number"
            raise LoadError(text) from error

    return options.metric.rpartition(":")[2], measured


@contextmanager
def stages(options: argparse.Namespace) -> Iterator[Any]:
    """A line that says what is being done, gone afterwards; silent where stderr is no terminal."""
    with tqdm(bar_format="{desc} [{elapsed}]", disable=True if options.json else None, leave=False) as bar:
        yield bar.set_description_str


def _form(word: str, rank: int | Rule, width: float) -> Branched:
    """A form by its word; those that have a width take it."""
    kind = WORDS[word]
    more: dict[str, Any] = {"width": width} if "width" in {item.name for item in dataclasses.fields(kind)} else {}
    return kind(rank=rank, **more)
