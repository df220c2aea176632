"""int8 and fp16 versions of a float ONNX file, each behind a check of its own.

    float file -> sums joined -> channels evened out -> ranges -> rounded -> weights fitted to what they see -> file

int8 is static: QuantizeLinear/DequantizeLinear pairs, weights per output channel, activations as the target has them
(`target.py`; signed ones are slow on x86). Sums of convs become one conv (`joining.py`) and channel ranges are evened
out (`equalise.py`), which changes no function; weights are rounded to what their layer computes (`fitting.py`). The
file is compared with the float one on the calibration inputs, value by value (`activations.py`), so a bad layer has a
name; `exclude_worst` leaves the layers that add most noise in float and quantises again.

fp16 saves file size; on a CPU it is not faster.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import ModelProto
from onnxruntime.transformers import float16
from tabulate import tabulate

from convsurgeon.base.errors import ExportError, LatencyError, ParityError, first_line
from convsurgeon.base.files import check_file, new_file, scratch
from convsurgeon.base.tables import Table
from convsurgeon.int8.activations import LayerError, layer_errors
from convsurgeon.int8.agreement import Agreement, agreement
from convsurgeon.int8.feeds import feeds_of
from convsurgeon.int8.pipeline import kept, lower, prepare
from convsurgeon.int8.ranges import CALIBRATORS, Calibrator, Ranges
from convsurgeon.int8.target import Target
from convsurgeon.onnx import node_names as names
from convsurgeon.onnx.exporter import version
from convsurgeon.onnx.session import checked
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import Feed


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
    notes: tuple[str, ...] = ()
    """What stays in float by itself, and what the target would rather have otherwise."""

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
        return {
            **head,
            "sqnr_db": _finite(self.sqnr_db),
            "agreement": self.agreement,
            "layers": rows,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        fidelity = f"SQNR {self.sqnr_db:.1f} dB, same top-1 {self.agreement:.1%}"
        line = "\n".join((f"{self.path}: {self.kind}, {self.size_bytes / 1e6:.2f} MB, {fidelity}", *self.notes))
        rows = [(one.name, f"{one.sqnr_db:.1f}", f"{one.added:.2%}") for one in self.worst[:5]]
        return f"{line}\n{tabulate(rows, headers=('worst layers', 'SQNR dB', 'noise added'))}" if rows else line


def quantize(
    source: str | Path,
    path: str | Path,
    calibration: Any,
    *,
    calibrator: Calibrator = "percentile",
    exclude: Sequence[str] = (),
    exclude_worst: int = 0,
    equalised: bool = True,
    fitted: bool = True,
    target: Target | None = None,
    sqnr_db: float = 10.0,
    overwrite: bool = False,
) -> Quantized:
    """Writes a static int8 version of a float file.

    Args:
        source: A float32 ONNX file, best one from `export`.
        path: Where to write.
        calibration: Inputs like those in use, unlabelled: a tensor or array with one image per row, or an iterable of
            such, or of dicts by input name. A remainder that does not fill the file's batch is dropped.
        calibrator: How ranges are found: `percentile` (99.999) or `minmax`.
        exclude: Names of nodes that stay in float.
        exclude_worst: How many further layers stay in float: those that add most noise, found by a first pass.
        equalised: Whether channel ranges are evened out first, which changes no function (see `equalise.py`).
        fitted: Whether weights are rounded to what their layer computes, not each to the nearest (see `fitting.py`).
        target: What the file is for; onnxruntime on this machine's processor if not given.
        sqnr_db: Smallest signal over error of the outputs that passes.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        WriteError: The file exists or cannot be written.
        ExportError: The source is not valid, a name in `exclude` is not in it, the calibration does not fit, or the
            target wants fixed shapes.
        ParityError: The outputs are further off than `sqnr_db`. Nothing is written.
    """
    origin, place = Path(source), check_file(path, overwrite)
    aim = Target.onnxruntime() if target is None else target
    model = _read(origin)
    feeds = feeds_of(model, calibration)
    _check_names(model, exclude)
    _check_shapes(model, aim)
    if calibrator not in CALIBRATORS:
        raise ExportError(f"calibrator {calibrator!r}: choose one of {', '.join(sorted(CALIBRATORS))}")
    with new_file(place, overwrite) as draft, scratch() as folder:
        even = folder / "float.onnx"
        ranges = _prepared(origin, model, feeds, calibrator, equalised)
        ends = kept(model, aim)
        left = {*ends, *exclude}
        onnx.save(model, even)
        how = (ranges, feeds, aim, fitted)
        layers = _round(even, model, draft, left, *how)
        if exclude_worst > 0:
            worst = sorted((one for one in layers if not one.excluded), key=lambda one: -one.added)
            left |= {one.name for one in worst[:exclude_worst]}
            layers = _round(even, model, draft, left, *how)
        fidelity = agreement(origin, draft, feeds)
        notes = (*_untouched(model, ends), *_uneven(model, aim))
        return _accept(place, draft, "int8", fidelity, sqnr_db, layers, notes)


def convert_fp16(
    source: str | Path, path: str | Path, inputs: Any, *, sqnr_db: float = 40.0, overwrite: bool = False
) -> Quantized:
    """Writes a version with half-precision weights and values; inputs and outputs stay float32.

    Args:
        source: A float32 ONNX file.
        path: Where to write.
        inputs: Inputs to compare on, as for `quantize`.
        sqnr_db: Smallest signal over error of the outputs that passes.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        WriteError: The file exists or cannot be written.
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


def _prepared(
    origin: Path, model: ModelProto, feeds: Sequence[Feed], calibrator: Calibrator, equalised: bool
) -> Ranges:
    """`prepare`, whose failures are those of the file and its calibration."""
    try:
        return prepare(model, feeds, calibrator, equalised)
    except Exception as error:  # the runtime's exceptions have no common base but Exception
        raise ExportError(f"{origin}: cannot be run on the calibration: {first_line(error)}") from error


def _round(
    even: Path,
    model: ModelProto,
    draft: Path,
    left: Collection[str],
    ranges: Ranges,
    feeds: Sequence[Feed],
    target: Target,
    fitted: bool,
) -> tuple[LayerError, ...]:
    """Quantises into the draft and says what each layer lost."""
    try:
        made = lower(model, ranges, feeds, target, left, fitted)
    except ExportError as error:
        raise ExportError(f"{draft.name}: {error}") from error
    draft.write_bytes(_stamped(made))
    return layer_errors(even, model, draft, feeds, set(left))


def _accept(
    target: Path,
    draft: Path,
    kind: Literal["int8", "fp16"],
    fidelity: Agreement,
    limit: float,
    layers: tuple[LayerError, ...],
    notes: tuple[str, ...] = (),
) -> Quantized:
    """Describes the draft if it is near enough to the float file; raises, so that it is dropped, if it is not."""
    near = fidelity.sqnr_db
    same = 1.0 if fidelity.top1 is None else fidelity.top1
    made = Quantized(target, draft.stat().st_size, kind, near, same, layers, notes)
    if not near >= limit:
        named = f"; worst layer {made.worst[0].name}, try exclude_worst=1" if made.worst else ""
        raise ParityError(f"{target}: not written, {kind} outputs have SQNR {near:.1f} dB (limit {limit:g}){named}")
    return made


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


def _check_shapes(model: ModelProto, target: Target) -> None:
    """Refuses open dimensions where the target wants none."""
    for name, shape in proto.signature(model.graph.input):
        if target.static and not all(isinstance(size, int) and size > 0 for size in shape):
            raise ExportError(
                f"{name}: has open dimensions, and {target.name} wants fixed shapes; export with dynamic=None"
            )


def _untouched(model: ModelProto, ends: Collection[str]) -> tuple[str, ...]:
    """A note on the ends that stay in float."""
    named = [node.name for node in model.graph.node if node.name in ends]
    return (f"{', '.join(named)}: in float, because the network adds to an image",) if named else ()


def _uneven(model: ModelProto, target: Target) -> tuple[str, ...]:
    """A note on convs whose widths are not what the target would have, but for those that make the file's outputs."""
    outputs = {info.name for info in model.graph.output}
    sizes = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    wrong = [
        (node.name, width)
        for node in model.graph.node
        if node.op_type == "Conv"
        and not outputs & set(node.output)
        and (width := sizes.get(node.input[1], 0)) % target.align
    ]
    if not wrong:
        return ()
    shown = ", ".join(f"{name} ({width})" for name, width in wrong[:3])
    more = f" and {len(wrong) - 3} more" if wrong[3:] else ""
    return (f"{target.name} fills its lanes with widths in multiples of {target.align}, which {shown}{more} have not.",)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
