"""The bundle: everything a device and its engineer need, in one folder that appears whole or not at all.

Everything is written to and measured in a temporary folder beside the target, which then takes its place in one step
(see `convsurgeon.files`): a failure leaves nothing, a kill leaves the old folder or the new one, never a mixture.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from convsurgeon.base.errors import CalibrationError
from convsurgeon.base.files import BUNDLE, new_folder
from convsurgeon.base.tables import in_markdown, printable
from convsurgeon.bundle import variants
from convsurgeon.bundle.deployment import Deployment
from convsurgeon.bundle.loading import SUMS, sha256
from convsurgeon.bundle.networks import Order, write_models
from convsurgeon.bundle.readme import readme
from convsurgeon.bundle.recommendation import Recommended
from convsurgeon.calibration.collect import input_names, read
from convsurgeon.calibration.dataset import Calibration
from convsurgeon.calibration.images import Images
from convsurgeon.calibration.synthetic import synthesise
from convsurgeon.conversion import Result
from convsurgeon.graph.capture import capture
from convsurgeon.int8.quantize import Quantized
from convsurgeon.int8.ranges import Calibrator
from convsurgeon.int8.target import Target
from convsurgeon.onnx import inputs
from convsurgeon.onnx.exporter import OnnxFile, check_opset
from convsurgeon.onnx.metadata import Preparation
from convsurgeon.onnx.torch_export import Dynamic
from convsurgeon.onnxnet.network import OnnxNetwork
from convsurgeon.onnxnet.session import Level, check_threads
from convsurgeon.planning.inspection import energy_curves
from convsurgeon.report.page import page
from convsurgeon.report.sentence import sentence
from convsurgeon.timing.benchmark import LEVELS
from convsurgeon.timing.verdict import check_pairs


@dataclass(frozen=True)
class Bundle:
    """Where the files are, and what was measured on them."""

    folder: Path
    deployment: Deployment
    sentence: str
    """What came of it, in one sentence."""

    def __str__(self) -> str:
        """What was measured, what came of it, and where it is."""
        names = ", ".join(sorted(path.name for path in self.folder.iterdir())) if self.folder.is_dir() else "gone"
        return f"{self.deployment}\n\n{printable(self.sentence)}\n\nWritten to {self.folder}: {names}"

    @property
    def original(self) -> OnnxFile:
        """The network as it was."""
        return self.deployment.original

    @property
    def converted(self) -> OnnxFile:
        """The network after the surgery."""
        return self.deployment.converted

    @property
    def quantized(self) -> tuple[Quantized, ...]:
        """int8 and fp16 versions of both."""
        return self.deployment.quantized

    @property
    def recommended(self) -> Recommended | None:
        """The file to ship and the session options to run it with; None where nothing was timed."""
        return self.deployment.recommended


def export(
    result: Result,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    opset: int = 18,
    dynamic: Dynamic = None,
    int8: bool | None = None,
    fp16: bool = False,
    calibration: object = None,
    images: int = 1024,
    calibrator: Calibrator = "percentile",
    exclude_worst: int = 0,
    target: Target | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    classes: Sequence[str] = (),
    pairs: int = 100,
    threads: Sequence[int] = (),
    levels: Sequence[Level] = LEVELS,
    progress: bool = True,
    command: str = "",
    before: Callable[[str], None] = lambda _stage: None,
) -> Bundle:
    """Writes ONNX files, weights, plan, golden pair, checksums, a README and the report as JSON, Markdown and HTML.

    Args:
        result: A conversion.
        folder: Is made; an existing one is replaced whole if `overwrite` is true and it holds nothing but a bundle.
        overwrite: Whether it may be.
        opset: Of all ONNX files.
        dynamic: Which dimensions stay open: None, `"batch"` or `"size"`.
        int8: Whether to write static int8 versions of both networks too; if not given, where the conversion was planned
            for int8.
        fp16: Whether to write half-precision versions of both.
        calibration: Unlabelled inputs, best those the conversion was calibrated on: the first part sets the ranges of
            int8, the last fifth tells how near all files are to the original. If not given, the images that were made
            up for the conversion, or that it held back; for int8 new ones where there are neither. False for none.
        images: Most of them to use.
        calibrator: How int8 ranges are found: `"percentile"` or `"minmax"`.
        exclude_worst: Layers to leave in float in int8 files, those that would add most noise.
        target: What the int8 files are for; onnxruntime on this machine's processor if not given.
        mean: Subtracted from pixels in [0, 1]; goes into the files' metadata, as do `std` and `classes`.
        std: Divides them then.
        classes: Names of the outputs.
        pairs: Interleaved timing rounds; 0 for no timing.
        threads: Of the runtime when timing; 1 and the number of cores if not given.
        levels: Of the runtime's optimisations when timing.
        progress: Whether bars appear.
        command: What was typed, for the report.
        before: Is told each stage before it begins.

    Raises:
        WriteError: The folder exists or cannot be written.
        CalibrationError: int8 with `calibration=False`, or with one that does not fit.
        ExportError: One of the models has no ONNX form; ParityError if a file computes something else.
        LatencyError: A timing setting is out of range.
    """
    int8 = result.precision == "int8" if int8 is None else int8
    wanted: dict[variants.Kind, bool] = {"int8": int8, "fp16": fp16}
    kinds = tuple(kind for kind, asked in wanted.items() if asked)
    check_order(opset, int8 and calibration is False, pairs, threads)
    preparation = Preparation(tuple(mean), tuple(std), tuple(classes))
    measured = (pairs, tuple(threads), tuple(levels), progress)
    aim = Target.onnxruntime() if target is None else target
    order = Order(opset, dynamic, kinds, calibrator, exclude_worst, aim, preparation, *measured, command, before)
    data = _images(calibration, result, images, int8, progress)
    places = result.original.source.places if isinstance(result.original, OnnxNetwork) else ()
    with new_folder(folder, overwrite, BUNDLE | {Path(place).parts[0] for place in places}) as temporary:
        deployment = write_models(result, data, order, temporary)
        words = sentence(result.report, deployment.to_dict())
        _write_papers(result, deployment, words, temporary)
    place = Path(folder)
    return Bundle(place, deployment.moved_to(place), words)


def check_order(opset: int, lacks_images: bool, pairs: int, threads: Sequence[int]) -> None:
    """Refuses what cannot work; made to be asked before a conversion, which may take long.

    Args:
        opset: Of the files.
        lacks_images: Whether int8 is wanted and there is nothing to calibrate it on.
        pairs: Timing rounds, 0 for none.
        threads: Of the runtime.

    Raises:
        CalibrationError: int8 without images.
        ExportError: No such opset.
        LatencyError: Too few rounds for a verdict, or a thread count out of reach.
    """
    if lacks_images:
        raise CalibrationError("int8: needs images to find its ranges on; pass calibration, or leave it out")
    check_opset(opset)
    if pairs:
        check_pairs(pairs, ", or 0 for no timing")
    for count in threads:
        check_threads(count)


def _images(calibration: object, result: Result, images: int, int8: bool, progress: bool) -> Calibration | None:
    """Images that are given, or those of the conversion, or for int8 new ones that are made up."""
    if calibration is False:
        return None
    if calibration is not None and not (isinstance(calibration, Images) and calibration.source is None):
        return _read(calibration, result, images)
    if result.made_up:
        return _ordered(result.made_up, result)
    if result.held_back:
        return _read(result.held_back if int8 else Calibration((), result.held_back), result, images)
    if int8:
        return _ordered(synthesise(capture(result.original, result.example), images, seed=0, progress=progress), result)
    return None


def _read(calibration: object, result: Result, images: int) -> Calibration:
    if isinstance(calibration, Calibration):
        return _ordered(calibration, result)
    names = input_names(result.original, result.example)
    return _ordered(read(calibration, result.example, names, limit=images), result)


def _ordered(data: Calibration, result: Result) -> Calibration:
    """With the arguments in the order of the model's forward, as its files take them."""
    fitted, held_back = (
        tuple(inputs.order_example(result.original, one) for one in part) for part in (data.fitted, data.held_back)
    )
    return dataclasses.replace(data, fitted=fitted, held_back=held_back)


def _write_papers(result: Result, deployment: Deployment, words: str, folder: Path) -> None:
    """Plan, reports, README, and the checksums of everything, which come last."""
    report, measured = result.report, deployment.to_dict()
    original = result.original
    title = original.source.path.stem if isinstance(original, OnnxNetwork) else type(original).__name__
    of_file = isinstance(original, OnnxNetwork)
    result.plan.save(folder / "plan.json")
    tables = "\n\n".join(table.markdown() for table in (*report.tables, *deployment.tables))
    opening = "\n\n".join(map(in_markdown, (words, *report.notes)))
    values = {"sentence": words, **report.to_dict(), "deployment": measured}
    curves = energy_curves(result.original, report.steps)
    texts = {
        "report.json": json.dumps(values, indent=1, allow_nan=False) + "\n",
        "report.md": f"# convsurgeon report: {in_markdown(title)}\n\n{opening}\n\n{tables}\n",
        "report.html": page(title, report, curves, measured),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    files = (entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if entry.is_file())
    names = sorted({*files, "README.md", SUMS})
    (folder / "README.md").write_text(readme(title, words, deployment, names, of_file), encoding="utf-8")
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names if name != SUMS]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
