"""What commands write: the bundle, its options and what is printed of it; onnx and onnxruntime load when it runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convsurgeon.base.errors import ExportError, LoadError, reason
from convsurgeon.base.files import BUNDLE, check_folder, read_text
from convsurgeon.base.tables import printable
from convsurgeon.cli.options import NONE, group
from convsurgeon.cli.timing import add_timing
from convsurgeon.conversion import Result

TARGETS = ("onnxruntime", "npu")


def add_export(command: argparse.ArgumentParser) -> None:
    """Options of `convert` that concern the bundle."""
    options = group(command, "output")
    options.add_argument(
        "--out", metavar="DIR", help="write the bundle: ONNX files, weights, plan, golden pair, report"
    )
    options.add_argument("--force", action="store_true", help="replace an existing bundle")
    options.add_argument("--opset", type=int, default=18, help="ONNX opset (default 18)")
    options.add_argument(
        "--dynamic", choices=("batch", "size"), help="leave batch or image size open (mobile providers want neither)"
    )
    options.add_argument(
        "--int8", action="store_true", default=None, help="also static int8 of both networks (so with --precision int8)"
    )
    options.add_argument(
        "--target",
        choices=TARGETS,
        default="onnxruntime",
        help="what int8 files are for: onnxruntime, or what compilers for NPUs want (fixed shapes, symmetric)",
    )
    options.add_argument("--per-tensor", action="store_true", help="of an NPU: one scale for a whole weight")
    options.add_argument(
        "--activations", choices=("int8", "uint8"), help="of an NPU: type of the values (default int8)"
    )
    options.add_argument(
        "--calibrator", choices=("percentile", "minmax"), default="percentile", help="how int8 ranges are found"
    )
    options.add_argument(
        "--exclude-worst", type=int, default=0, metavar="N", help="leave the N layers in float that int8 hurts most"
    )
    options.add_argument("--fp16", action="store_true", help="also half-precision files of both networks")
    options.add_argument("--classes", metavar="NAMES.txt", help="names of the outputs, one a line, for the metadata")
    add_timing(command, "interleaved timing rounds (default 100; 0 for none)")


def check_export(options: argparse.Namespace) -> None:
    """Refuses what cannot work before any work is done.

    Raises:
        WriteError: the folder exists or cannot be written.
        CalibrationError: `--int8` with `--calibrate none`.
        ExportError: an opset that is not written, or options of another target.
        LatencyError: too few rounds, or no threads.
        LoadError: the file of class names cannot be read.
    """
    if not options.out:
        return
    check_folder(options.out, options.force, BUNDLE)
    from convsurgeon.bundle.bundle import check_order

    lacks_images = _wants_int8(options) and options.calibrate == NONE
    check_order(options.opset, lacks_images, options.pairs, options.threads)
    _class_names(options.classes)
    _target(options)


def export_bundle(
    options: argparse.Namespace, result: Result, calibration: object, stage: Callable[[str], None]
) -> Any:
    """Writes the bundle."""
    from convsurgeon.bundle.bundle import export

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
        target=_target(options),
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

    print(f"\n{bundle}")
    for text in cautions(result.report, bundle.deployment.to_dict()):
        print(f"note: {printable(text)}")
    print(f"Open {bundle.folder / 'report.html'} in a browser.")


def _wants_int8(options: argparse.Namespace) -> bool:
    return bool(options.int8 or getattr(options, "precision", "fp32") == "int8")


def _target(options: argparse.Namespace) -> Any:
    from convsurgeon.int8.target import Target

    if options.target == "npu":
        return Target.npu(options.activations or "int8", per_channel=not options.per_tensor)
    if options.per_tensor or options.activations:
        raise ExportError("--per-tensor, --activations: are of --target npu; add it, or leave them out")
    return Target.onnxruntime()


def _class_names(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise LoadError(f"{path}: cannot be read ({reason(error)}); pass a text file with one name a line") from error
    return [line.strip() for line in lines if line.strip()]


def _typed(arguments: list[str]) -> str:
    """The command as it was typed, folders of this machine left out: the report may go to somebody else."""
    return shlex.join(["convsurgeon", *(Path(one).name if one.startswith(("/", "~")) else one for one in arguments)])
