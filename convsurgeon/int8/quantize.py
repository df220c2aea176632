"""int8 and fp16 versions of a float ONNX file, each compared with it before it is written.

    float file -> sums merged -> channels evened out -> ranges -> rounded -> weights fitted to what they see -> file

int8 is static: QuantizeLinear/DequantizeLinear pairs, weights per output channel, activations as the target has them.
The file is compared with the float one on the calibration inputs, value by value, so a bad layer has a name;
`exclude_worst` leaves the layers that add most noise in float and quantises again.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import ModelProto
from onnxruntime.transformers import float16

from convsurgeon.base.errors import ExportError, LatencyError, ParityError, expect, first_line
from convsurgeon.base.files import check_file, new_file
from convsurgeon.base.normal import in_normal_mode
from convsurgeon.base.tables import Table
from convsurgeon.base.version import version
from convsurgeon.int8.compare import Agreement, LayerError, compare_layers, measure_agreement
from convsurgeon.int8.feeds import make_feeds
from convsurgeon.int8.float_ends import find_float_ends
from convsurgeon.int8.float_joins import find_float_joins
from convsurgeon.int8.pipeline import prepare, round_graph
from convsurgeon.int8.ranges import CALIBRATORS, Calibrator
from convsurgeon.int8.target import Target
from convsurgeon.onnx import node_names
from convsurgeon.onnx.files import load_checked
from convsurgeon.onnxnet import proto

Kind = Literal["int8", "fp16"]


@dataclass(frozen=True)
class Quantized:
    """A file in fewer bits, and how far it is from the float one."""

    path: Path
    size_bytes: int
    kind: Kind
    sqnr_db: float
    """Of the outputs, over all calibration inputs, by the optimised runtime."""
    agreement: float
    """Share of rows with the same largest output; 1 where the output is not one row per image."""
    layers: tuple[LayerError, ...]
    """In the order of the graph; empty for fp16."""
    notes: tuple[str, ...] = ()
    """What stays in float by default, and what the target would rather have otherwise."""

    @property
    def worst(self) -> tuple[LayerError, ...]:
        """Rounded layers by the noise they add, the worst first."""
        return tuple(sorted((layer for layer in self.layers if not layer.excluded), key=lambda one: -one.added))

    @property
    def table(self) -> Table:
        """The ten layers that add most noise; empty for fp16."""
        columns = (("layer", "text"), ("sqnr_db", "decibel"), ("noise_added", "share"))
        rows = tuple((one.name, one.sqnr_db, one.added) for one in self.worst[:10])
        return Table(f"{self.path.name}: layers by the error that rounding them adds", columns, rows)

    def __str__(self) -> str:
        fidelity = f"SQNR {self.sqnr_db:.1f} dB, {self.agreement:.1%} of decisions stay"
        line = "\n".join((f"{self.path}: {self.kind}, {self.size_bytes / 1e6:.2f} MB, {fidelity}", *self.notes))
        return f"{line}\n{self.table.text()}" if self.worst else line


@in_normal_mode
def quantize(
    source: str | Path,
    path: str | Path,
    calibration: Any,
    *,
    calibrator: Calibrator = "percentile",
    exclude: Sequence[str] = (),
    exclude_worst: int = 0,
    target: Target | None = None,
    sqnr_db: float = 10.0,
    overwrite: bool = False,
) -> Quantized:
    """Write a static int8 version of a float file.

    Args:
        source: A float32 ONNX file, best one from `export`.
        path: Where to write.
        calibration: Inputs like those in use, unlabelled: a tensor or array with one image per row, or an iterable of
            these, or of dicts by input name. A remainder that does not fill the file's batch is dropped.
        calibrator: How ranges are found: `percentile` (99.999) or `minmax`.
        exclude: Names of nodes that stay in float.
        exclude_worst: How many further layers stay in float: those that add most noise, found by a first pass.
        target: What the file is for; onnxruntime on this machine's processor by default.
        sqnr_db: Smallest signal over error of the outputs that passes.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        WriteError: The file exists or cannot be written.
        ExportError: The source is not valid, a name in `exclude` is not in it, the calibration does not fit, or the
            target wants fixed shapes.
        ParityError: The outputs are further off than `sqnr_db`. Nothing is written.
    """
    expect(source, (str, os.PathLike), "source: expected the path of an ONNX file", ExportError)
    origin, place = Path(source), check_file(path, overwrite)
    target = Target.onnxruntime() if target is None else target
    model = _read(origin)
    feeds = make_feeds(model, calibration)
    _check(model, calibrator, exclude, target)
    try:
        ranges = prepare(model, feeds, calibrator)
        joins = find_float_joins(model, feeds, target)
    except Exception as error:  # the runtime's exceptions share no base class but Exception
        raise ExportError(f"{origin}: cannot be run on the calibration: {first_line(error)}") from error
    ends = find_float_ends(model, target)
    left = {*ends, *joins, *exclude}
    rounded = round_graph(model, ranges, feeds, target, left)
    layers = compare_layers(model, rounded, feeds, left)
    if exclude_worst > 0:
        worst = sorted((one for one in layers if not one.excluded), key=lambda one: -one.added)
        left |= {one.name for one in worst[:exclude_worst]}
        rounded = round_graph(model, ranges, feeds, target, left)
        layers = compare_layers(model, rounded, feeds, left)
    with new_file(place, overwrite) as draft:
        draft.write_bytes(_stamped(rounded))
        fidelity = measure_agreement(origin, draft, feeds)
        return _accept(place, draft, "int8", fidelity, sqnr_db, layers, _notes(model, ends, joins, target))


def convert_fp16(
    source: str | Path, path: str | Path, inputs: Any, *, sqnr_db: float = 40.0, overwrite: bool = False
) -> Quantized:
    """Write a version with half-precision weights and values, for its size: on a CPU it is not faster.

    Args:
        source: A float32 ONNX file; the inputs and outputs of the new one stay float32.
        path: Where to write.
        inputs: Inputs to compare on, as for `quantize`.
        sqnr_db: Smallest signal over error of the outputs that passes.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        WriteError: The file exists or cannot be written.
        ExportError: The source is not valid or cannot be converted.
        ParityError: The outputs are further off than `sqnr_db`. Nothing is written.
    """
    expect(source, (str, os.PathLike), "source: expected the path of an ONNX file", ExportError)
    origin, place = Path(source), check_file(path, overwrite)
    model = _read(origin)
    feeds = make_feeds(model, inputs)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"onnxruntime\.transformers")  # values it clamps; judged below
            halved = float16.convert_float_to_float16(model, keep_io_types=True)
        proto.sort_nodes(halved.graph)  # the converter appends the casts of the inputs at the end
    except Exception as error:  # the converter's exceptions share no base class but Exception
        raise ExportError(f"{origin}: cannot be converted to fp16: {first_line(error)}") from error
    with new_file(place, overwrite) as draft:
        draft.write_bytes(_stamped(halved))
        return _accept(place, draft, "fp16", measure_agreement(origin, draft, feeds), sqnr_db)


def _read(origin: Path) -> ModelProto:
    try:
        load_checked(origin)
        model = onnx.load(origin)
        proto.normalise(model.graph)
    except LatencyError as error:
        raise ExportError(str(error)) from error
    for node in (node for graph in proto.graphs(model.graph) for node in proto.quantised(graph)):
        raise ExportError(f"{origin}: {proto.label(node)} is quantised already; pass the float file")
    return model


def _check(model: ModelProto, calibrator: str, exclude: Sequence[str], target: Target) -> None:
    if calibrator not in CALIBRATORS:
        raise ExportError(f"calibrator {calibrator!r}: choose one of {', '.join(sorted(CALIBRATORS))}")
    known = {node.name for node in model.graph.node}
    for name in exclude:
        if name not in known:
            raise ExportError(f"exclude: no node is called {name!r}; names are those Netron shows")
    for name, shape in proto.signature(model.graph.input):
        if target.static and not all(isinstance(size, int) and size > 0 for size in shape):
            raise ExportError(
                f"{name}: has open dimensions, and {target.name} wants fixed shapes; export with dynamic=None"
            )


def _accept(
    place: Path,
    draft: Path,
    kind: Kind,
    fidelity: Agreement,
    limit: float,
    layers: tuple[LayerError, ...] = (),
    notes: tuple[str, ...] = (),
) -> Quantized:
    """Describe the draft if it is near enough to the float file; else raise, so that it is dropped."""
    same = 1.0 if fidelity.top1 is None else fidelity.top1
    made = Quantized(place, draft.stat().st_size, kind, fidelity.sqnr_db, same, layers, notes)
    if not made.sqnr_db >= limit:
        named = f"; worst layer {made.worst[0].name}, try exclude_worst=1" if made.worst else ""
        raise ParityError(
            f"{place}: not written, {kind} loses too much: SQNR {made.sqnr_db:.1f} dB, the limit is {limit:g}{named}"
        )
    return made


def _stamped(model: ModelProto) -> bytes:
    """Return the bytes of a file that bears our name and no metadata but that of the float file."""
    kept = [(item.key, item.value) for item in model.metadata_props if not item.key.startswith("onnx.")]
    node_names.strip(model)
    for key, value in kept:
        model.metadata_props.add(key=key, value=value)
    model.producer_name, model.producer_version = "convsurgeon", version()
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's errors share no base class but Exception
        raise ExportError(f"the rounded graph is not valid ONNX: {first_line(error)}") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _notes(model: ModelProto, ends: Collection[str], joins: Collection[str], target: Target) -> tuple[str, ...]:
    """Return notes on the ends that stay in float, and on inner convs whose widths the target does not fill."""
    notes = []
    if named := [node.name for node in model.graph.node if node.name in ends]:
        notes.append(f"{', '.join(named)}: in float, because the network adds to an image")
    if joins:
        notes.append(f"{len(joins)} nodes at the end: in float, because values of very different size are joined there")
    outputs = {info.name for info in model.graph.output}
    sizes = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    wrong = []
    for node in model.graph.node:
        width = sizes.get(node.input[1], 0) if node.op_type == "Conv" and not outputs & set(node.output) else 0
        if width % target.align:
            wrong.append(f"{node.name} ({width})")
    if wrong:
        more = f" and {len(wrong) - 3} more" if wrong[3:] else ""
        shown = f"{', '.join(wrong[:3])}{more}"
        notes.append(f"{target.name} prefers widths that are multiples of {target.align}; {shown} are not")
    return tuple(notes)
