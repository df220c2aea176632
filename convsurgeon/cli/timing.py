"""Commands and options about milliseconds: `device`, `bench`, tables of latencies; onnx and onnxruntime load late."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from convsurgeon.cli.options import add_choices, add_command, add_model, group
from convsurgeon.cli.reading import choices, model_and_example
from convsurgeon.forms.catalogue import BUDGET_FORMS

_LEVELS = ("all", "extended", "basic", "off")


def add(commands: Any) -> None:
    """Adds the commands."""
    device = add_command(
        commands, "device", _device, "a folder to take to a device, with a script that times layers there"
    )
    add_model(device)
    add_choices(device)
    _add_device(device)
    bench = add_command(commands, "bench", _bench, "time ONNX files against the first one, in interleaved pairs")
    _add_bench(bench)


def add_timing(command: argparse.ArgumentParser, words: str) -> None:
    """Options of everything that times."""
    options = group(command, "timing")
    options.add_argument("--pairs", type=int, default=100, help=words)
    options.add_argument("--threads", nargs="+", type=int, default=[], help="of onnxruntime (default 1 and all cores)")
    options.add_argument(
        "--level",
        nargs="+",
        choices=_LEVELS,
        default=["all", "extended"],
        help="of onnxruntime's optimisations (default: all and extended)",
    )


def add_latencies(command: argparse.ArgumentParser) -> None:
    """Options of commands that plan within a latency."""
    options = group(command, "budget")
    options.add_argument(
        "--device",
        metavar="FILE.json",
        help="plan for the device that this was measured on (see the device command); else for this machine",
    )
    options.add_argument(
        "--cache", metavar="DIR", help="where latencies of this machine are kept (default: the user's cache folder)"
    )


def add_milliseconds(command: argparse.ArgumentParser) -> None:
    """Options of `sweep`, whose budgets are of MACs or milliseconds, and which may show these beside those."""
    options = group(command, "budget")
    options.add_argument(
        "--of", choices=("macs", "latency"), default="macs", help="what the --shares are of (default macs)"
    )
    options.add_argument(
        "--milliseconds", action="store_true", help="measure every layer in onnxruntime here, and show the sums"
    )
    options.add_argument("--device", metavar="FILE.json", help="or take what was measured on a device")
    options.add_argument("--cache", metavar="DIR", help="where latencies of this machine are kept")


def _add_device(command: argparse.ArgumentParser) -> None:
    """Options of `device`."""
    options = group(command, "output")
    options.add_argument("--out", required=True, metavar="DIR", help="where the folder for the device goes")
    options.add_argument("--force", action="store_true", help="replace an existing one that holds no result")


def _add_bench(command: argparse.ArgumentParser) -> None:
    """Arguments of `bench`."""
    command.add_argument("files", nargs="+", metavar="FILE.onnx")
    command.add_argument("--batch", type=int, default=1, help="for a symbolic first dimension (default 1)")
    command.add_argument(
        "--sizes", nargs="+", default=[], type=_size, metavar="NAME=N", help="for other symbolic dimensions (64 each)"
    )
    add_timing(command, "interleaved timing rounds in the first setting (default 100); the others take 50")


def _device(options: argparse.Namespace) -> None:
    from convsurgeon.runtime.device_folder import write_device_folder

    chosen = choices(options)
    model, example = model_and_example(options)
    forms = chosen.get("forms", BUDGET_FORMS)
    count = write_device_folder(model, example, forms, options.out, chosen["policy"], overwrite=options.force)
    size = sum(path.stat().st_size for path in Path(options.out).iterdir())
    print(f"{options.out}: the dense network and {count} candidates in fp32 and int8, {size / 1e6:.1f} MB")
    print(f"On the device: python {Path(options.out) / 'measure.py'}, which needs numpy and onnxruntime and writes")
    print("device.json. Then here: convsurgeon convert ... --budget latency=0.5 --device device.json")


def _bench(options: argparse.Namespace) -> None:
    from convsurgeon.timing.benchmark import bench

    found = bench(
        *options.files,
        pairs=options.pairs,
        threads=options.threads,
        levels=options.level,
        batch=options.batch,
        sizes=dict(options.sizes),
        progress=not options.json,
    )
    print(json.dumps(found.to_dict(), indent=1) if options.json else found)


def _size(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if not name or not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=N")
    return name, int(value)
