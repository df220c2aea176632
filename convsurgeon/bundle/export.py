"""`export`: a folder with everything that a device and its engineer need, whole or not at all."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from convsurgeon.base.errors import CalibrationError, ConvSurgeonError, ExportError, LatencyError, expect
from convsurgeon.base.files import new_folder
from convsurgeon.base.normal import in_normal_mode
from convsurgeon.base.tables import in_markdown
from convsurgeon.bundle.int8_files import feeds_for, single_batches
from convsurgeon.bundle.loading import SUMS, sha256
from convsurgeon.bundle.networks import Request, write_network_files
from convsurgeon.bundle.readme import make_readme
from convsurgeon.calibration.collect import input_names, read
from convsurgeon.calibration.dataset import Calibration
from convsurgeon.calibration.images import Images, preparation
from convsurgeon.calibration.synthetic import synthesise
from convsurgeon.graph.capture import capture
from convsurgeon.onnx import inputs
from convsurgeon.onnx.metadata import Preparation
from convsurgeon.onnx.torch_export import Dynamic
from convsurgeon.onnxnet.measuring.engine import Engine
from convsurgeon.onnxnet.network import OnnxNetwork
from convsurgeon.onnxnet.session import check_engine
from convsurgeon.planning.inspection import energy_curves
from convsurgeon.report.bundle import Bundle
from convsurgeon.report.held_out import HeldOut, compare_images
from convsurgeon.report.page import page
from convsurgeon.report.sentence import sentence
from convsurgeon.result import Result
from convsurgeon.runtime.runtime import Runtime
from convsurgeon.timing.verdict import check_pairs

CONTENTS = frozenset(
    {
        *("original.onnx", "model.onnx", "model.onnx.data", "original-int8.onnx", "model-int8.onnx"),
        *("model-mixed.onnx", "weights.safetensors", "plan.json", "report.json", "report.md", "report.html"),
        *("example_inputs.npz", "example_outputs.npz", "README.md", "SHA256SUMS"),
    }
)
"""What an exported folder may hold; one with anything else in it is never replaced."""

_IMAGES = 1024


@in_normal_mode
def export(
    result: Result,
    folder: str | os.PathLike[str],
    *,
    int8: bool | None = None,
    calibration: object = None,
    runtime: Runtime | None = None,
    dynamic: Dynamic = None,
    pairs: int = 100,
    overwrite: bool = False,
    progress: bool = True,
) -> Bundle:
    """Write ONNX files, weights, plan, an example with its output, checksums, a README and the report into a folder.

    Args:
        result: a conversion.
        folder: is made; an existing one is replaced whole if `overwrite` is true and it holds nothing but a bundle.
        int8: whether to write static int8 versions of both networks; by default if the conversion was planned for int8.
        calibration: unlabelled inputs, see `Images`: the first part sets the ranges of int8, the last fifth tells how
            near all files are to the original. By default images that the conversion synthesised or held back, and for
            int8 new synthetic ones if there are none. False for none.
        runtime: how files are timed: with its threads, provider and options; by default as the conversion was, with one
            thread and with as many as there are cores.
        dynamic: dimensions that stay open: None, `"batch"` or `"size"`.
        pairs: interleaved timing rounds; 0 for no timing.
        overwrite: whether an existing bundle may be replaced.
        progress: whether bars appear.

    Raises:
        WriteError: the folder exists or cannot be written.
        CalibrationError: int8 with `calibration=False`, or with images that do not fit.
        ExportError: one of the models has no ONNX form; ParityError if a file computes something else.
        LatencyError: a timing setting is out of range.
    """
    expect(runtime, (Runtime, type(None)), "runtime: expected a Runtime", LatencyError)
    expect(result, Result, "export: expected the result of convert", ExportError)
    int8 = result.precision == "int8" if int8 is None else int8
    threads = () if runtime is None else (runtime.threads,)
    runtime = result.runtime if runtime is None else runtime
    engine = runtime.engine if runtime.table is None else Engine()  # a device's runtime need not be here
    check_export(int8=int8, calibration=calibration, pairs=pairs, engine=engine)
    images = preparation(calibration) or result.images or Images()
    both = (() if one is None else tuple(np.ravel(one).tolist()) for one in (images.mean, images.std))
    request = Request(int8, dynamic, Preparation(*both), pairs, threads, engine, progress)
    places = result.original.source.places if isinstance(result.original, OnnxNetwork) else ()
    with (
        new_folder(folder, overwrite, CONTENTS | {Path(place).parts[0] for place in places}) as temporary,
        _named(temporary, Path(folder)),
    ):
        data = _images(calibration, result, int8, progress)
        bundle = write_network_files(result, data, request, temporary)
        bundle = dataclasses.replace(bundle, sentence=sentence(result.report, bundle))
        _write_papers(result, bundle, images, _compare_images(result, bundle, data), temporary)
    return bundle.moved_to(Path(folder))


@contextmanager
def _named(temporary: Path, folder: Path) -> Iterator[None]:
    """Have errors name the folder that was asked for, not the one that it is made in."""
    try:
        yield
    except ConvSurgeonError as error:
        if str(temporary) not in str(error):
            raise
        text = str(error).replace(str(temporary), str(folder))
        raise type(error)(text).with_traceback(error.__traceback__) from None


def check_export(*, int8: bool, calibration: object, pairs: int, engine: Engine) -> None:
    """Refuse what cannot work; also asked before a conversion, which may take long."""
    if int8 and calibration is False:
        raise CalibrationError("int8: its ranges are found on images; pass calibration, or leave int8 out")
    if pairs:
        check_pairs(pairs, ", or 0 for no timing")
        check_engine(engine)


def _images(calibration: object, result: Result, int8: bool, progress: bool) -> Calibration | None:
    """Return images that are given, or those of the conversion, or for int8 new synthetic ones."""
    if calibration is False:
        return None
    if calibration is None or (isinstance(calibration, Images) and calibration.source is None):
        if result.made_up is not None:
            calibration = result.made_up
        elif result.held_back:
            calibration = result.held_back if int8 else Calibration((), result.held_back)
        elif int8:
            calibration = synthesise(capture(result.original, result.example), _IMAGES, seed=0, progress=progress)
        else:
            return None
    if not isinstance(calibration, Calibration):
        names = input_names(result.original, result.example)
        calibration = read(calibration, result.example, names, limit=_IMAGES)
    fitted, held_back = (
        tuple(inputs.order_example(result.original, one) for one in part)
        for part in (calibration.fitted, calibration.held_back)
    )
    return dataclasses.replace(calibration, fitted=fitted, held_back=held_back)


def _compare_images(result: Result, bundle: Bundle, data: Calibration | None) -> HeldOut | None:
    """Return what the file to ship, or the converted one, gives for held-out images; None where there are none."""
    shown = (
        [] if data is None else single_batches(data.held_back, inputs.order_example(result.original, result.example))
    )
    if not shown or not bundle.rewritten:
        return None
    fidelity, place = result.report.fidelity, bundle.original.path
    maps_decide = fidelity is not None and fidelity.overlap is not None
    feeds = feeds_for(bundle.original, shown)
    return compare_images(place, place.with_name(bundle.shown), feeds, maps_decide=maps_decide)


def _write_papers(result: Result, bundle: Bundle, images: Images, held_out: HeldOut | None, folder: Path) -> None:
    """Write plan, reports, README, and the checksums of everything, which come last."""
    report, original = result.report, result.original
    of_file = isinstance(original, OnnxNetwork)
    title = original.source.path.stem if isinstance(original, OnnxNetwork) else type(original).__name__
    result.plan.save(folder / "plan.json")
    values = {"sentence": bundle.sentence, **report.to_dict(), "deployment": bundle.to_dict()}
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(values), indent=1) + b"\n")
    parts = [f"# convsurgeon report: {in_markdown(title)}", *map(in_markdown, (bundle.sentence, *report.notes))]
    parts += [table.markdown() for table in (*report.tables, *bundle.tables)]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    curves = energy_curves(original, report.steps)
    (folder / "report.html").write_text(page(title, report, curves, bundle, held_out), encoding="utf-8")
    files = (entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if entry.is_file())
    names = sorted({*files, "README.md"})
    reading = images.reading_code(result.example, bundle.converted.inputs[0][0])
    text = make_readme(title, bundle, [*names, SUMS], reading, of_file)
    (folder / "README.md").write_text(text, encoding="utf-8")
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
