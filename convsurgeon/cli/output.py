"""What `convert` and `recover` write and print; onnx and onnxruntime load when it runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from convsurgeon.base.files import check_folder
from convsurgeon.base.tables import printable
from convsurgeon.result import Result
from convsurgeon.runtime.runtime import Runtime

if TYPE_CHECKING:  # which loads onnx
    from convsurgeon.report.bundle import Bundle


def check_output(options: argparse.Namespace, calibration: object) -> None:
    """Refuse what cannot work before any work is done."""
    if not options.out:
        return
    from convsurgeon.bundle.export import CONTENTS, check_export
    from convsurgeon.onnxnet.measuring.engine import Engine

    check_folder(options.out, options.force, CONTENTS)
    int8 = bool(options.int8) or options.precision == "int8"
    engine = Engine(1 if options.threads is None else options.threads, options.provider, dict(options.options))
    check_export(int8=int8, calibration=calibration, pairs=options.pairs, engine=engine)


def write_output(options: argparse.Namespace, result: Result, calibration: object) -> object:
    """Write the bundle, if one is asked for, and print the report, or return it as plain values."""
    bundle = None
    if options.out:
        from convsurgeon.bundle.export import export

        bundle = export(
            result,
            options.out,
            int8=options.int8,
            calibration=calibration,
            runtime=_timed_with(options),
            dynamic=options.dynamic,
            pairs=options.pairs,
            overwrite=options.force,
            progress=not options.json,
        )
    if options.json:
        return {"report": result.report.to_dict()} | ({} if bundle is None else {"deployment": bundle.to_dict()})
    _print(options, result, bundle)
    return None


def _timed_with(options: argparse.Namespace) -> Runtime | None:
    """Return how files are timed, where it is said; else as the conversion was."""
    if options.threads is None:
        return None
    return Runtime(options.threads, provider=options.provider, options=dict(options.options))


def _print(options: argparse.Namespace, result: Result, bundle: Bundle | None) -> None:
    """Print one line, ten, or everything."""
    from convsurgeon.report.cautions import cautions, remarks
    from convsurgeon.report.sentence import lines, sentence

    if options.quiet:
        print(printable(sentence(result.report, bundle)))
        return
    notes = [*cautions(result.report, bundle), *remarks(result.report, bundle)]
    if bundle is None:
        where = "Nothing was written: add --out DIR for ONNX files and a report. Every table: --verbose."
    else:
        folder = bundle.folder
        where = f"How to run it: {folder / 'README.md'}. Report: {folder / 'report.html'}. Every table: --verbose."
    print("\n".join(lines(result.report, bundle, where=where, notes=notes)))
    if options.verbose:
        print("", *map(printable, (f"note: {text}" for text in notes)), result.report, sep="\n")
        print(*([f"\n{bundle}"] if bundle is not None else []))
