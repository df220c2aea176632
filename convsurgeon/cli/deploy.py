"""The part of the command line that writes and times ONNX files; onnx and onnxruntime load when it runs."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convsurgeon.base.errors import LoadError
from convsurgeon.base.files import BUNDLE, check_folder
from convsurgeon.conversion import Result

_LEVELS = ("all", "extended", "basic", "off")


def add_export(command: argparse.ArgumentParser) -> None:
    """Options of `convert` that concern the bundle."""
    command.add_argument(
        "--out", metavar="DIR", help="write the bundle: ONNX files, weights, plan, golden pair, report"
    )
    command.add_argument("--force", action="store_true", help="replace an existing bundle")
    command.add_argument("--opset", type=int, default=18, help="ONNX opset (default 18)")
    command.add_argument(
        "--dynamic", choices=("batch", "size"), help="leave batch or image size open (mobile providers want neither)"
    )
    command.add_argument("--int8", action="store_true", help="also static int8 of both networks; needs --calibrate")
    command.add_argument(
        "--calibrator", choices=("percentile", "minmax"), default="percentile", help="how int8 ranges are found"
    )
    command.add_argument(
        "--exclude-worst", type=int, default=0, metavar="N", help="leave the N layers in float that int8 hurts most"
    )
    command.add_argument("--fp16", action="store_true", help="also half-precision files of both networks")
    command.add_argument("--classes", metavar="NAMES.txt", help="names of the outputs, one a line, for the metadata")
    add_timing(command, "interleaved timing rounds (default 100; 0 for none)")


def add_bench(command: argparse.ArgumentParser) -> None:
    """Arguments of `bench`."""
    command.add_argument("files", nargs="+", metavar="FILE.onnx")
    command.add_argument("--batch", type=int, default=1, help="for a symbolic first dimension (default 1)")
    command.add_argument(
        "--sizes", nargs="+", default=[], type=_size, metavar="NAME=N", help="for other symbolic dimensions (64 each)"
    )
    add_timing(command, "interleaved timing rounds in the first setting (default 100); the others take 50")


def add_timing(command: argparse.ArgumentParser, words: str) -> None:
    """Options of everything that times."""
    command.add_argument("--pairs", type=int, default=100, help=words)
    command.add_argument("--threads", nargs="+", type=int, default=[], help="of onnxruntime (default 1 and all cores)")
    command.add_argument(
        "--level",
        nargs="+",
        choices=_LEVELS,
        default=["all", "extended"],
        help="of onnxruntime's optimisations (default: all and extended)",
    )


def check_export(options: argparse.Namespace) -> None:
    """Refuses what cannot work before any work is done.

    Raises:
        OutputError: the folder exists or cannot be written.
        CalibrationError: `--int8` without images.
        ExportError: an opset that is not written.
        LatencyError: too few rounds, or no threads.
        LoadError: the file of class names cannot be read.
    """
    if not options.out:
        return
    check_folder(options.out, options.force, BUNDLE)
    from convsurgeon.deploy.bundle.bundle import check_order

    check_order(options.opset, options.int8 and not options.calibrate, options.pairs, options.threads)
    _class_names(options.classes)


def export_bundle(
    options: argparse.Namespace, result: Result, calibration: object, stage: Callable[[str], None]
) -> Any:
    """Writes the bundle."""
    from convsurgeon.deploy.bundle.bundle import export

    return export(
        result,
        options.out,
        overwrite=options.force,
        opset=options.opset,
        dynamic=options.dynamic,
        int8=options.int8,
        fp16=options.fp16,
        calibration=calibration,
        images=options.images,
        calibrator=options.calibrator,
        exclude_worst=options.exclude_worst,
        mean=options.mean,
        std=options.std,
        classes=_class_names(options.classes),
        pairs=options.pairs,
        threads=options.threads,
        levels=options.level,
        progress=not options.json,
        command=_typed(sys.argv[1:]),
        before=stage,
    )


def print_bundle(bundle: Any, result: Result) -> None:
    """What was measured, what came of it, and where it is."""
    from convsurgeon.report.sentence import cautions

    deployment = bundle.deployment
    print(f"\n{deployment}\n\n{bundle.sentence}")
    for text in cautions(result.report, deployment.to_dict()):
        print(f"note: {text}")
    print(f"\nWritten to {bundle.folder}: {', '.join(sorted(path.name for path in bundle.folder.iterdir()))}")
    print(f"Open {bundle.folder / 'report.html'} in a browser.")


def run_bench(options: argparse.Namespace) -> None:
    """The `bench` command."""
    from convsurgeon.deploy.timing.bench import bench

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


def _class_names(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{path}: cannot be read ({error}); pass a text file with one name a line") from error
    return [line.strip() for line in lines if line.strip()]


def _typed(arguments: list[str]) -> str:
    """The command as it was typed, folders of this machine left out: the report may go to somebody else."""
    return shlex.join(["convsurgeon", *(Path(one).name if one.startswith(("/", "~")) else one for one in arguments)])


def _size(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if not name or not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=N")
    return name, int(value)
