"""Options that commands share, and the values they are read into."""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

from convsurgeon.base.errors import ConvSurgeonError
from convsurgeon.base.precision import PRECISIONS
from convsurgeon.cli.commands import COMMANDS, Command
from convsurgeon.onnxnet.measuring.options import read_option

FORMS = ("cp", "separable", "blueprint", "subspace", "lowrank")
"""What the forms that ship are called on the command line."""

NONE = "none"
"""What `--calibrate` takes for no images, not even synthetic ones."""

_MOST_VALUES = 2**31


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        assert isinstance(parser, Command)
        parser.usual = ()
        parser.print_help()
        parser.exit()


def add_command(
    commands: Any,
    name: str,
    examples: Sequence[str],
    usual: Collection[str] = (),
) -> Command:
    """Add a command, whose help ends with examples; `usual` names the options that its short help shows, if not all."""
    words = COMMANDS[name][1]
    command: Command = commands.add_parser(
        name,
        help=words,
        description=words[0].upper() + words[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  convsurgeon {name} {line}" for line in examples),
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=32),
    )
    command.set_defaults(command=name, json=False)
    if usual:
        command.usual = {"help_all", "out", "force", "verbose", "quiet", *usual}
        command.add_argument("--help-all", action=_HelpAll, nargs=0, help="show every option")
    return command


def add_json(command: argparse.ArgumentParser) -> None:
    """Add the choice between tables and JSON."""
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")


def add_printing(command: argparse.ArgumentParser) -> None:
    """Add how much is printed of a conversion: ten lines if nothing is said."""
    options = command.add_mutually_exclusive_group()
    options.add_argument("--verbose", action="store_true", help="print every table too, not ten lines alone")
    options.add_argument("--quiet", action="store_true", help="print one line")
    options.add_argument("--json", action="store_true", help="print JSON")


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the model, its weights and its inputs."""
    command.add_argument(
        "model",
        metavar="MODEL",
        help="package.module:factory, file.py:factory, torchvision:NAME, timm:NAME, or an ONNX file",
    )
    options = command.add_argument_group("model")
    options.add_argument("--weights", metavar="FILE", help="safetensors, or a checkpoint of plain tensors")
    options.add_argument(
        "--input",
        nargs="+",
        type=_read_input,
        default=[],
        metavar="1x3x224x224",
        help="shape of every input, batch first; of an ONNX file where its sizes are open, by name: x=1x3x320x320",
    )
    options.add_argument(
        "--linear",
        nargs="*",
        metavar="NAME",
        help="linear layers to rewrite too, as 1x1 convs, with * for any letters (without a name all large ones)",
    )


def add_forms(command: argparse.ArgumentParser) -> None:
    """Add which convs change, and into what."""
    options = command.add_argument_group("what to change")
    options.add_argument(
        "--form",
        nargs="+",
        default=[],
        choices=FORMS,
        metavar="FORM",
        help=f"what convs may become: the first that fits, or with --budget the best: {', '.join(FORMS)}",
    )
    options.add_argument("--rank", nargs="+", default=[], type=int, help="ranks of the forms, one or several")
    options.add_argument(
        "--select",
        type=_reader("planning.select", "parse"),
        metavar="POLICY",
        help="for example 'kernel_size(3) & min_channels(32) & ~named(layer4.*)'; all but the stem by default, and the "
        "stem, too, where milliseconds decide",
    )


def add_budget(command: argparse.ArgumentParser) -> None:
    """Add what the model may cost."""
    command.add_argument(
        "--budget",
        type=_reader("search.goal", "Budget.parse"),
        metavar="macs=0.3",
        help="what the model may cost: macs=, params=, bytes=, latency= as a share or an amount (params=20M)",
    )


def add_runtime(command: argparse.ArgumentParser) -> None:
    """Add where the network will run."""
    options = command.add_argument_group("runtime")
    options.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of the file that ships (default fp32)"
    )
    options.add_argument("--threads", type=int, help="of onnxruntime (default 1; export also times all cores)")
    add_provider(options)
    options.add_argument(
        "--device", metavar="FILE.json", help="milliseconds of another device, from `convsurgeon device`"
    )


def add_provider(options: Any) -> None:
    """Add what runs files: one of onnxruntime's execution providers, or OpenVINO."""
    options.add_argument(
        "--provider",
        default="CPUExecutionProvider",
        metavar="NAME",
        help="of onnxruntime, or openvino (default CPUExecutionProvider)",
    )
    options.add_argument(
        "--options",
        nargs="+",
        default=[],
        type=read_option,
        metavar="NAME=VALUE",
        help="of the provider or the session, by their names there: session.intra_op.allow_spinning=0",
    )


def add_images(command: argparse.ArgumentParser, name: str, words: str) -> None:
    """Add the images and how their pixels become inputs."""
    options = command.add_argument_group(
        "images", "Pictures of a folder are RGB from 0 to 1, scaled to cover the input's size and cut in the middle."
    )
    options.add_argument(name, dest="images", metavar="IMAGES", help=f"folder, .npy or .npz: {words}")
    options.add_argument("--mean", nargs="+", type=float, help="subtracted then, one for each channel")
    options.add_argument("--std", nargs="+", type=float, help="divides then, one for each channel")
    options.add_argument("--trusted", action="store_true", help="use images that look wrong for the network")


def add_metric(command: argparse.ArgumentParser, better: bool = True) -> None:
    """Add the user's own measure, and which of its values are better."""
    command.add_argument(
        "--metric", metavar="FILE.py:FUNCTION", help="model -> number, or one for each image; it decides"
    )
    if better:
        command.add_argument("--better", choices=("higher", "lower"), default="higher", help="which --metric is better")


def add_seed(command: argparse.ArgumentParser) -> None:
    """Add the seed."""
    command.add_argument("--seed", type=_read_seed, default=0, help="of all random numbers (default 0)")


def add_output(command: argparse.ArgumentParser, metavar: str, words: str, required: bool = False) -> None:
    """Add where a file or folder goes."""
    command.add_argument("--out", metavar=metavar, required=required, help=words)
    command.add_argument("--force", action="store_true", help="replace what an earlier run wrote there")


def add_bundle(command: argparse.ArgumentParser) -> None:
    """Add what the exported folder holds."""
    add_output(command, "DIR", "write ONNX files, weights, plan and report into a folder")
    options = command.add_argument_group("exported files")
    options.add_argument("--int8", action="store_true", default=None, help="also int8 versions of both networks")
    options.add_argument("--dynamic", choices=("batch", "size"), help="leave batch or image size open")
    options.add_argument("--pairs", type=int, default=100, help="interleaved timing rounds (default 100; 0 for none)")


def _read_input(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the name of the input, if one is given, and the shape."""
    name, equals, shape = text.rpartition("=")
    if equals and not name:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not NAME=SHAPE")
    sizes = tuple(int(part) if part.isdecimal() and len(part) < 10 else 0 for part in shape.lower().split("x"))
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a shape; write for example 1x3x224x224")
    if math.prod(sizes) > _MOST_VALUES:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} has more than {_MOST_VALUES:,} values; pass a smaller shape")
    return name, sizes


def _read_seed(text: str) -> int:
    if not text.removeprefix("-").isdecimal() or len(text) > 18:  # what torch's generators take
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a seed; write a whole number of up to 17 digits")
    return int(text)


def _reader(module: str, function: str) -> Callable[[str], object]:
    """Return a function of the package, loaded when it is needed, as an option's type; argparse prints its message."""

    def parsed(text: str) -> object:
        try:
            return attrgetter(function)(importlib.import_module(f"convsurgeon.{module}"))(text)
        except ConvSurgeonError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed
