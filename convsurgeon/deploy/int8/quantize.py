"""int8 and fp16 versions of a float ONNX file, each behind a check of its own.

int8 is static: QuantizeLinear/DequantizeLinear pairs, unsigned activations (signed ones are slow on x86), weights per
output channel. The file is compared with the float one on the calibration inputs, value by value (`activations.py`), so
a bad layer has a name; `exclude_worst` leaves the layers that add most noise in float and quantises again.

Channel ranges are evened out first (`equalise.py`). A tensor's range is a percentile of its values, or their smallest
and largest. The runtime's entropy calibrator is not offered: with its default of 128 bins for 128 levels it gave the
same file as the latter, byte for byte.

fp16 saves file size; on a CPU it is not faster.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import ModelProto
from onnxruntime import quantization
from onnxruntime.transformers import float16
from tabulate import tabulate

from convsurgeon.base.errors import ExportError, LatencyError, ParityError, first_line
from convsurgeon.base.files import check_file, new_file
from convsurgeon.base.leftovers import scratch
from convsurgeon.base.tables import Table
from convsurgeon.deploy.int8.activations import LayerError, layer_errors
from convsurgeon.deploy.int8.agreement import Agreement, agreement
from convsurgeon.deploy.int8.equalise import equalise
from convsurgeon.deploy.int8.feeds import feeds_of
from convsurgeon.deploy.onnx import names
from convsurgeon.deploy.onnx.export import version
from convsurgeon.deploy.timing.session import Feed, checked
from convsurgeon.onnxnet import proto

Calibrator = Literal["minmax", "percentile"]
_METHODS = {
    "minmax": quantization.CalibrationMethod.MinMax,
    "percentile": quantization.CalibrationMethod.Percentile,
}


@dataclass(frozen=True)
class Quantized:
    """A file in fewer bits, and how far it is from the float one."""

    path: Path
    size_bytes: int
    kind: Literal["int8", "fp16"]
    sqnr_db: float
    """Of the outputs, over all calibration inputs, by the optimised runtime."""
    agreement: float
    """Share of rows whose largest output is the same; 1 where the output is not one row per image."""
    layers: tuple[LayerError, ...]
    """In the order of the graph; empty for fp16."""

    @property
    def worst(self) -> tuple[LayerError, ...]:
        """Layers by the noise they add, the worst first."""
        return tuple(sorted((layer for layer in self.layers if not layer.excluded), key=lambda one: -one.added))

    def moved_to(self, path: Path) -> Quantized:
        """The same file after somebody moved it."""
        return replace(self, path=path)

    @property
    def table(self) -> Table:
        """The ten layers that add most noise; empty for fp16."""
        columns = (("layer", "text"), ("sqnr_db", "decibel"), ("noise_added", "share"))
        rows = tuple((one.name, one.sqnr_db, one.added) for one in self.worst[:10])
        return Table(f"{self.path.name}: layers by the noise that rounding them adds", columns, rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an infinite figure is null."""
        rows = [{key: _finite(value) for key, value in asdict(layer).items()} for layer in self.layers]
        head = {"path": str(self.path), "size_bytes": self.size_bytes, "kind": self.kind}
        return {**head, "sqnr_db": _finite(self.sqnr_db), "agreement": self.agreement, "layers": rows}

    def __str__(self) -> str:
        fidelity = f"SQNR {self.sqnr_db:.1f} dB, same top-1 {self.agreement:.1%}"
        line = f"{self.path}: {self.kind}, {self.size_bytes / 1e6:.2f} MB, {fidelity}"
        rows = [(one.name, f"{one.sqnr_db:.1f}", f"{one.added:.2%}") for one in self.worst[:5]]
        return f"{line}\n{tabulate(rows, headers=('worst layers', 'SQNR dB', 'noise added'))}" if rows else line


def quantize_int8(
    source: str | Path,
    path: str | Path,
    calibration: Any,
    *,
    calibrator: Calibrator = "percentile",
    exclude: Sequence[str] = (),
    exclude_worst: int = 0,
    equalised: bool = True,
    sqnr_db: float = 10.0,
    overwrite: bool = False,
) -> Quantized:
    """Writes a static int8 version of a float file.

    Args:
        source: A float32 ONNX file, best one from `export_onnx`.
        path: Where to write.
        calibration: Inputs like those in use, unlabelled: a tensor or array with one image per row, or an iterable of
            such, or of dicts by input name. A remainder that does not fill the file's batch is dropped.
        calibrator: How ranges are found: `percentile` (99.999) or `minmax`.
        exclude: Names of nodes that stay in float.
        exclude_worst: How many further layers stay in float: those that add most noise, found by a first pass.
        equalised: Whether channel ranges are evened out first, which changes no function (see `equalise.py`).
        sqnr_db: Smallest signal over error of the outputs that passes.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        OutputError: The file exists or cannot be written.
        ExportError: The source is not valid, a name in `exclude` is not in it, or the calibration does not fit.
        ParityError: The outputs are further off than `sqnr_db`. Nothing is written.
    """
    origin, target = Path(source), check_file(path, overwrite)
    model = _read(origin)
    feeds = feeds_of(model, calibration)
    _check_names(model, exclude)
    if calibrator not in _METHODS:
        raise ExportError(f"calibrator {calibrator!r}: choose one of {', '.join(_METHODS)}")
    left = set(exclude)
    with new_file(target, overwrite) as draft, scratch() as folder:
        if equalised:
            _equalise(origin, model, feeds)
        even = folder / "float.onnx"
        onnx.save(model, even)
        layers = _round(even, model, draft, feeds, calibrator, left)
        if exclude_worst > 0:
            worst = sorted((one for one in layers if not one.excluded), key=lambda one: -one.added)
            left |= {one.name for one in worst[:exclude_worst]}
            layers = _round(even, model, draft, feeds, calibrator, left)
        fidelity = agreement(origin, draft, feeds)
        return _accept(target, draft, "int8", fidelity, sqnr_db, layers)


def convert_fp16(
    source: str | Path, path: str | Path, inputs: Any, *, sqnr_db: float = 40.0, overwrite: bool = False
) -> Quantized:
    """Writes a version with half-precision weights and values; inputs and outputs stay float32.

    Args:
        source: A float32 ONNX file.
        path: Where to write.
        inputs: Inputs to compare on, as for `quantize_int8`.
        sqnr_db: Smallest signal over error of the outputs that passes.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        OutputError: The file exists or cannot be written.
        ExportError: The source is not valid or cannot be converted.
        ParityError: The outputs are further off than `sqnr_db`. Nothing is written.
    """
    origin, target = Path(source), check_file(path, overwrite)
    model = _read(origin)
    feeds = feeds_of(model, inputs)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"onnxruntime\.transformers")  # values it clamps; judged below
            halved = float16.convert_float_to_float16(model, keep_io_types=True)
        proto.sort_nodes(halved.graph)  # the converter appends the casts of the inputs at the end
    except Exception as error:  # whatever the converter trips over
        raise ExportError(f"{origin}: cannot be converted to fp16: {first_line(error)}") from error
    with new_file(target, overwrite) as draft:
        draft.write_bytes(_stamped(halved))
        return _accept(target, draft, "fp16", agreement(origin, draft, feeds), sqnr_db, ())


def _equalise(origin: Path, model: ModelProto, feeds: Sequence[Feed]) -> None:
    try:
        equalise(model, feeds)
    except Exception as error:  # the runtime's exceptions have no common base but Exception
        raise ExportError(f"{origin}: cannot be run on the calibration: {first_line(error)}") from error


def _round(
    origin: Path, model: ModelProto, draft: Path, feeds: Sequence[Feed], calibrator: str, left: set[str]
) -> tuple[LayerError, ...]:
    """Quantises into the draft and says what each layer lost."""
    with _quietly(), scratch() as folder:
        rough = folder / "int8.onnx"
        try:
            quantization.quantize_static(
                origin,
                rough,
                _Reader(feeds),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=sorted(left),
                calibrate_method=_METHODS[calibrator],
            )
        except Exception as error:  # whatever the quantiser trips over
            raise ExportError(f"{origin}: cannot be quantised: {first_line(error)}") from error
        draft.write_bytes(_stamped(onnx.load(rough)))
    return layer_errors(origin, model, draft, feeds, left)


def _accept(
    target: Path,
    draft: Path,
    kind: Literal["int8", "fp16"],
    fidelity: Agreement,
    limit: float,
    layers: tuple[LayerError, ...],
) -> Quantized:
    """Describes the draft if it is near enough to the float file; raises, so that it is dropped, if it is not."""
    found = fidelity.sqnr_db
    same = 1.0 if fidelity.top1 is None else fidelity.top1
    made = Quantized(target, draft.stat().st_size, kind, found, same, layers)
    if not found >= limit:
        named = f"; worst layer {made.worst[0].name}, try exclude_worst=1" if made.worst else ""
        raise ParityError(f"{target}: not written, {kind} outputs have SQNR {found:.1f} dB (limit {limit:g}){named}")
    return made


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Hands the feeds to the calibrator one by one."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._left, None)


def _read(origin: Path) -> ModelProto:
    try:
        checked(origin)
        return onnx.load(origin)
    except LatencyError as error:
        raise ExportError(str(error)) from error


def _check_names(model: ModelProto, exclude: Iterable[str]) -> None:
    known = {node.name for node in model.graph.node}
    for name in exclude:
        if name not in known:
            raise ExportError(f"exclude: no node is called {name!r}; names are those Netron shows")


def _stamped(model: ModelProto) -> bytes:
    """Bytes of a file that bears our name and no metadata but what the float file had."""
    kept = [(item.key, item.value) for item in model.metadata_props if not item.key.startswith("onnx.")]
    names.strip(model)
    for key, value in kept:
        model.metadata_props.add(key=key, value=value)
    model.producer_name, model.producer_version = "convsurgeon", version()
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's errors share no base class
        raise ExportError(f"the rounded graph is not valid ONNX: {first_line(error)}") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The quantiser logs advice on the root logger that does not apply to tidied graphs; its calibrators print."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
