"""What is known of the files of one bundle: parity, nearness to the original, mobile providers, latency."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from convsurgeon.base.tables import Table, printable
from convsurgeon.int8.compare import Agreement
from convsurgeon.int8.quantize import Quantized
from convsurgeon.onnx.exporter import OnnxFile
from convsurgeon.onnx.metadata import Preparation
from convsurgeon.onnxnet.measuring.engine import CPU
from convsurgeon.onnxnet.session import Level
from convsurgeon.timing.benchmark import Bench
from convsurgeon.timing.comparison import ComparedFile

ORIGINAL, CONVERTED, DENSE_INT8, INT8 = "original.onnx", "model.onnx", "original-int8.onnx", "model-int8.onnx"

_SHOWN = 3

Suitability = Literal["yes", "maybe", "no"]


@dataclass(frozen=True)
class ProviderVerdict:
    """What one mobile provider does with a file, and whether it takes the file well."""

    provider: str
    suitable: Suitability
    nodes: int
    taken: int
    """Nodes that the provider takes."""
    pieces: int
    """Runs of nodes on the provider; every border between two costs a copy."""
    blocking: tuple[str, ...]
    """Nodes that it does not take, each as `name (operator)`."""


@dataclass(frozen=True)
class MobileVerdict:
    """What NNAPI, CoreML and XNNPACK do with a file."""

    providers: tuple[ProviderVerdict, ...]
    dynamic: tuple[str, ...]
    """Inputs without a static shape, which NNAPI and CoreML need."""

    @property
    def suitable(self) -> bool:
        """Whether every provider takes the file well."""
        return all(one.suitable == "yes" for one in self.providers)

    @property
    def table(self) -> Table:
        """One row for each provider, with the first nodes that it does not take."""
        columns = (("provider", "text"), ("suitable", "text"), ("nodes taken", "text"), ("partitions", "count"))
        rows = tuple(
            (one.provider, one.suitable, f"{one.taken} of {one.nodes}", one.pieces, _first(one.blocking))
            for one in self.providers
        )
        return Table("", (*columns, ("stopped by", "text")), rows)

    def __str__(self) -> str:
        notes = [f"note: input {name} has no static shape" for name in self.dynamic]
        return "\n".join((self.table.text(), *notes))


@dataclass(frozen=True)
class Recommended:
    """The file to ship, and the session options to run it with.

    Args:
        name: of the file.
        speedup: times as fast as `original.onnx` in this setting, measured in turns.
        interval: in which the speed-up lies with 95 % confidence.
        over_dense_int8: times as fast as the quantised original; None where there is none.
        lost: what it loses of the user's metric; without one the error of its outputs, as the search counted it.
        allowed: the most that a file was allowed to lose.
        threads: `intra_op_num_threads`; `inter_op_num_threads` is 1.
        spinning: `session.intra_op.allow_spinning`.
        level: `graph_optimization_level`.
        provider: execution provider of onnxruntime, or "openvino".
        options: of the provider or the session.
    """

    name: str
    speedup: float
    interval: tuple[float, float]
    over_dense_int8: float | None
    lost: float
    allowed: float
    threads: int
    spinning: bool
    level: Level
    provider: str = CPU
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A folder to ship, and everything that was measured on its ONNX files.

    Args:
        folder: where it lies.
        original: the network as it was.
        converted: the network after the surgery.
        quantized: int8 versions of both.
        agreement: nearness of every other file to `original.onnx`.
        agreement_on: the inputs that was measured on, in words.
        mobile: verdict of the mobile providers, by name of the file.
        preparation: how images become inputs.
        values: the user's metric of every file; empty without one.
        doubts: the standard errors of those against the original's, where the metric gave a value for each image.
        notes: what could not be done.
        rewritten: whether the converted network is another than the original.
        bench: latencies; None where nothing was timed.
        recommended: the file to ship; None where nothing was timed.
        sha256: of every ONNX file.
        sentence: what came of it, in one sentence.
    """

    folder: Path
    original: OnnxFile
    converted: OnnxFile
    quantized: tuple[Quantized, ...]
    agreement: tuple[Agreement, ...]
    agreement_on: str
    mobile: Mapping[str, MobileVerdict]
    preparation: Preparation
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    doubts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    rewritten: bool = True
    bench: Bench | None = None
    recommended: Recommended | None = None
    sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sentence: str = ""

    def moved_to(self, folder: Path) -> Bundle:
        """Return the same bundle in another folder."""
        return dataclasses.replace(
            self,
            folder=folder,
            original=dataclasses.replace(self.original, path=folder / self.original.path.name),
            converted=dataclasses.replace(self.converted, path=folder / self.converted.path.name),
            quantized=tuple(dataclasses.replace(one, path=folder / one.path.name) for one in self.quantized),
            bench=None if self.bench is None else self.bench.moved_to(folder),
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every ONNX file, by name."""
        every: tuple[OnnxFile | Quantized, ...] = (self.original, self.converted, *self.quantized)
        return {one.path.name: one.size_bytes for one in every}

    @property
    def distinct(self) -> tuple[str, ...]:
        """Names of the files that hold different networks: equal bytes are one file, and so is what was not changed."""
        return tuple(name for name in self.sizes if name != CONVERTED or self.rewritten)

    @property
    def shown(self) -> str:
        """Name of the file that stands beside the original: the one to ship, if that is another."""
        best = self.recommended
        return CONVERTED if best is None or best.name == ORIGINAL else best.name

    @property
    def near(self) -> dict[str, Agreement]:
        """Nearness to the original, by name of the file."""
        return {one.name: one for one in self.agreement}

    @property
    def rows(self) -> dict[str, ComparedFile]:
        """Latency in the first setting, by name of the file; empty where nothing was timed."""
        return {} if self.bench is None else {row.name: row for row in self.bench.main.rows}

    @property
    def files(self) -> Table:
        """Every ONNX file: size, and how near its outputs are to those of the original."""
        near_columns = (("sqnr_db", "decibel"), ("same_top1", "share"), ("error", "number"))
        metric = (("metric", "number"),) if self.values else ()
        columns = (("file", "text"), ("MB", "megabytes"), *metric, *near_columns, ("note", "text"))
        near = {name: (one.sqnr_db, one.top1, one.error) for name, one in self.near.items()}
        best = "" if self.recommended is None else self.recommended.name
        rows = tuple(
            (
                *(name, size, *([self.values.get(name)] if metric else [])),
                *near.get(name, (None, None, None)),
                "recommended" if name == best else None,
            )
            for name, size in self.sizes.items()
        )
        return Table(f"Files, compared with original.onnx on {self.agreement_on}", columns, rows)

    @property
    def parity(self) -> Table:
        """Torch against ONNX, for both float files."""
        columns = (("file", "text"), ("opset", "count"), ("IR", "count"), ("cases", "count"))
        more = (("relative", "text"), ("sqnr_db", "decibel"), ("parity", "text"))
        rows = []
        for one in (self.original, self.converted):
            word = "holds" if one.parity.passed else "FAILS"
            found = (len(one.parity.cases), f"{one.parity.relative:.1e}", one.parity.sqnr_db, word)
            rows.append((one.path.name, one.opset, one.ir_version, *found))
        return Table("Parity: the model in torch against its file in onnxruntime", (*columns, *more), tuple(rows))

    @property
    def providers(self) -> Table:
        """What mobile providers do with the float files."""
        rows = tuple((name, *row) for name, verdict in self.mobile.items() for row in verdict.table.rows)
        columns = next(iter(self.mobile.values())).table.columns
        return Table("Mobile providers, by onnxruntime's tables", (("file", "text"), *columns), rows)

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables that hold something, in the order of reading."""
        timed = () if self.bench is None else self.bench.tables
        layers = [one.table for one in self.quantized]
        return tuple(table for table in (self.files, self.parity, *timed, self.providers, *layers) if table.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; files are called by their names alone, for the folder may be moved."""
        values: dict[str, Any] = msgspec.to_builtins(self.moved_to(Path()), enc_hook=str)
        return values

    def __str__(self) -> str:
        timed = [] if self.bench is None else [str(self.bench)]
        tables = [self.files.text(), self.parity.text(), *timed, self.providers.text()]
        names = ", ".join(sorted(path.name for path in self.folder.iterdir())) if self.folder.is_dir() else "gone"
        return "\n\n".join([*tables, printable(self.sentence), f"Written to {self.folder}: {names}"])


def _first(names: tuple[str, ...]) -> str | None:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more or None
