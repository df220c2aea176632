"""Options that commands share, in groups, and the values they are read into."""

from __future__ import annotations

import argparse
import ast
from typing import Any

from convsurgeon.base.errors import ConvSurgeonError
from convsurgeon.base.precision import PRECISIONS
from convsurgeon.forms.catalogue import FORMS
from convsurgeon.planning.select import Policy, default_policy, parse
from convsurgeon.search.goal import Budget

WORDS = {form.word: form for form in FORMS}
"""What a form is called on the command line."""

NONE = "none"
"""What `--calibrate` takes for no images, made up ones neither."""

GROUPS = ("model", "what to change", "budget", "calibration", "recovery", "output", "timing")
"""Titles of the groups of options, in the order of the help."""


def add_command(commands: Any, name: str, run: Any, words: str) -> argparse.ArgumentParser:
    """A command with the options that all have."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=words, description=words[0].upper() + words[1:] + "."
    )
    command.set_defaults(run=run)
    for title in GROUPS:  # in this order, whoever fills them first; empty ones are not shown
        command.add_argument_group(title)
    output = group(command, "output")
    output.add_argument("--json", action="store_true", help="print JSON instead of tables")
    output.add_argument("--debug", action="store_true", help="show the traceback of an internal error")
    return command


def group(command: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """A command's group of options with one of the titles in `GROUPS`."""
    return next(made for made in command._action_groups if made.title == title)


def add_model(command: argparse.ArgumentParser) -> None:
    """The model, its weights and its inputs."""
    options = group(command, "model")
    command.add_argument(
        "model",
        metavar="MODEL",
        help="package.module:factory, file.py:factory, torchvision:NAME, timm:NAME, or an ONNX file",
    )
    options.add_argument(
        "--model-args", nargs="+", default=[], type=_assignment, metavar="NAME=VALUE", help="for the factory"
    )
    options.add_argument("--weights", metavar="FILE", help="safetensors, or a checkpoint of plain tensors")
    options.add_argument(
        "--linear",
        nargs="*",
        metavar="NAME",
        help="linear layers to treat as the 1x1 convs that they are, with * for any letters (default all large ones)",
    )
    options.add_argument(
        "--input",
        nargs="+",
        type=_input,
        default=[],
        metavar="1x3x224x224",
        help="shape of every input, batch first; of an ONNX file where its sizes are open, by name: x=1x3x320x320",
    )


def add_choices(command: argparse.ArgumentParser) -> None:
    """Which convs change, into what, and what the whole may cost."""
    options = group(command, "what to change")
    options.add_argument(
        "--form", nargs="+", default=[], choices=list(WORDS), help="candidates, the first that fits is taken"
    )
    options.add_argument("--rank", nargs="+", default=[], type=int, help="branches per layer, or channels inside")
    options.add_argument(
        "--energy", nargs="+", default=[], type=float, help="or the share of every kernel's energy to keep"
    )
    options.add_argument("--share", nargs="+", default=[], type=float, help="or of every layer's MACs")
    options.add_argument("--width", type=float, default=0.25, help="inner width of the subspace form (default 0.25)")
    options.add_argument(
        "--select",
        type=_policy,
        default=default_policy(),
        metavar="POLICY",
        help="for example 'kernel_size(3) & min_channels(32) & ~named(layer4.*)'; everything but the stem if not given",
    )
    group(command, "budget").add_argument(
        "--budget",
        type=_budget,
        metavar="macs=0.5",
        help="what the model may cost: macs=, params=, bytes=, latency= as shares or amounts (params=20M); all of "
        "--form and --rank are candidates then",
    )


def add_precision(command: argparse.ArgumentParser) -> None:
    """In which precision the network will run that is planned for."""
    group(command, "budget").add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the file that ships: its milliseconds are planned and its errors count (default fp32)",
    )


def add_within(command: argparse.ArgumentParser) -> None:
    """How much of the user's own measure may be lost, in place of a budget."""
    options = group(command, "budget")
    options.add_argument(
        "--within",
        metavar="1.0",
        help="the fastest network that loses at most this much of --metric (1.0, or 1%%), or without a metric of the "
        "output; needs --calibrate",
    )
    options.add_argument(
        "--better", choices=("higher", "lower"), default="higher", help="which --metric is better (default higher)"
    )


def add_calibration(command: argparse.ArgumentParser) -> None:
    """Images to fit the weights to, and how they are read."""
    group(command, "calibration").add_argument(
        "--calibrate",
        metavar="IMAGES",
        help="folder of images, .npy or .npz (an array per input where there are several): fit the weights to them; "
        "made up if not given; none: weights alone",
    )
    add_reading(command)


def add_reading(command: argparse.ArgumentParser) -> None:
    """How images are read, and what else the model is measured by."""
    options = group(command, "calibration")
    options.add_argument("--mean", nargs="+", type=float, default=[], help="subtracted from every channel in [0, 1]")
    options.add_argument("--std", nargs="+", type=float, default=[], help="divides every channel then")
    options.add_argument(
        "--layout",
        choices=("nchw", "nhwc"),
        default="nchw",
        help="where an ONNX file's images have their channels (default nchw)",
    )
    options.add_argument("--images", type=int, default=1024, help="most images to calibrate on (default 1024)")
    options.add_argument("--seed", type=_seed, default=0, help="of the positions drawn from them (default 0)")
    group(command, "output").add_argument(
        "--metric", metavar="FILE.py:FUNCTION", help="model -> number, printed before and after"
    )


def add_file(command: argparse.ArgumentParser, metavar: str, words: str) -> None:
    """Where a file goes."""
    output = group(command, "output")
    output.add_argument("--out", metavar=metavar, help=words)
    output.add_argument("--force", action="store_true", help="replace an existing file")


def _budget(text: str) -> Budget:
    try:
        return Budget.parse(text)
    except ConvSurgeonError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _input(text: str) -> tuple[str, tuple[int, ...]]:
    """A shape, and the name of the input it is of, if one is given."""
    name, equals, shape = text.rpartition("=")
    if equals and not name:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no NAME=SHAPE")
    return name, _shape(shape)


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) if part.isdecimal() and len(part) < 10 else 0 for part in text.lower().split("x"))
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no shape; write for example 1x3x224x224")
    return sizes


def _seed(text: str) -> int:
    if not text.removeprefix("-").isdecimal() or len(text) > 18:  # what torch's generators take
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no seed; write a whole number of up to 17 digits")
    return int(text)


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
        return parse(text)
    except ConvSurgeonError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
