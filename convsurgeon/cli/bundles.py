"""What commands write: the bundle, its options and what is printed of it; onnx and onnxruntime load when it runs."""

from __future__ import annotations

import argparse
from typing import Any

from convsurgeon.base.files import check_folder
from convsurgeon.base.tables import printable
from convsurgeon.cli.options import NONE, group
from convsurgeon.conversion import Result


def add_export(command: argparse.ArgumentParser) -> None:
    """Options of `convert` that concern the bundle."""
    options = group(command, "output")
    options.add_argument(
        "--out", metavar="DIR", help="write the bundle: ONNX files, weights, plan, golden pair, report"
    )
    options.add_argument("--force", action="store_true", help="replace an existing bundle")
    options.add_argument(
        "--dynamic", choices=("batch", "size"), help="leave batch or image size open (mobile providers need neither)"
    )
    options.add_argument(
        "--int8", action="store_true", default=None, help="also static int8 of both networks (so with --precision int8)"
    )
    timing = group(command, "timing")
    timing.add_argument("--pairs", type=int, default=100, help="interleaved timing rounds (default 100; 0 for none)")
    timing.add_argument("--threads", type=int, help="of onnxruntime (default: 1 to plan, 1 and all cores to time)")


def check_output(options: argparse.Namespace) -> None:
    """Refuse what cannot work before any work is done.

    Raises:
        WriteError: the folder exists or cannot be written.
        CalibrationError: `--int8` with `--calibrate none`.
        LatencyError: too few rounds, or no threads.
    """
    if not options.out:
        return
    from convsurgeon.bundle.export import CONTENTS, check_export

    check_folder(options.out, options.force, CONTENTS)
    check_export(
        int8=_wants_int8(options),
        calibration=False if options.calibrate == NONE else None,
        pairs=options.pairs,
        threads=_threads(options),
    )


def export_bundle(options: argparse.Namespace, result: Result, calibration: object) -> Any:
    """Write the bundle."""
    from convsurgeon.bundle.export import export
    from convsurgeon.runtime.runtime import Runtime

    threads = _threads(options)
    return export(
        result,
        options.out,
        int8=options.int8,
        calibration=calibration,
        runtime=Runtime(threads=threads[0]) if threads else None,
        dynamic=options.dynamic,
        pairs=options.pairs,
        overwrite=options.force,
        progress=not options.json,
    )


def print_bundle(bundle: Any, result: Result) -> None:
    """Print what was measured, what came of it, and where it is."""
    from convsurgeon.report.sentence import cautions

    print(f"\n{bundle}")
    for text in cautions(result.report, bundle):
        print(f"note: {printable(text)}")
    print(f"Open {bundle.folder / 'report.html'} in a browser.")


def _threads(options: argparse.Namespace) -> tuple[int, ...]:
    return () if options.threads is None else (options.threads,)


def _wants_int8(options: argparse.Namespace) -> bool:
    return bool(options.int8 or options.precision == "int8")
