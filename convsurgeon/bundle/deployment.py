"""What is known of the files of one bundle: parity, fidelity, mobile verdicts, latency. Plain data and tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convsurgeon.base.tables import Table, jsonable
from convsurgeon.bundle.mobile import MobileVerdict
from convsurgeon.bundle.recommendation import Recommended
from convsurgeon.int8.compare import Agreement
from convsurgeon.int8.quantize import Quantized
from convsurgeon.onnx.exporter import OnnxFile
from convsurgeon.onnx.metadata import Preparation
from convsurgeon.timing.benchmark import Bench


@dataclass(frozen=True)
class Deployment:
    """Everything that was measured on a bundle's ONNX files."""

    original: OnnxFile
    converted: OnnxFile
    quantized: tuple[Quantized, ...]
    agreement: tuple[Agreement, ...]
    """Every file against `original.onnx`, which is left out."""
    agreement_on: str
    """The inputs that was measured on, in words."""
    mobile: Mapping[str, MobileVerdict]
    """By name of the file."""
    benches: tuple[Bench, ...]
    """One, or none where nothing was timed."""
    preparation: Preparation
    recommended: Recommended | None
    """The file to ship; None where nothing was timed."""
    sha256: Mapping[str, str]
    """Of every ONNX file."""
    command: str
    """What was typed to make the bundle; empty where it was made in Python."""

    def moved_to(self, folder: Path) -> Deployment:
        """The same after somebody moved the folder."""
        return dataclasses.replace(
            self,
            original=self.original.moved_to(folder / self.original.path.name),
            converted=self.converted.moved_to(folder / self.converted.path.name),
            quantized=tuple(one.moved_to(folder / one.path.name) for one in self.quantized),
            benches=tuple(one.moved_to(folder) for one in self.benches),
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every ONNX file, by name."""
        return {one.path.name: one.size_bytes for one in self._every}

    @property
    def _every(self) -> tuple[OnnxFile | Quantized, ...]:
        return (self.original, self.converted, *self.quantized)

    @property
    def files(self) -> Table:
        """Every ONNX file: size, and how near its outputs are to those of the original."""
        near_columns = (("sqnr_db", "decibel"), ("same_top1", "share"), ("error", "number"))
        columns = (("file", "text"), ("MB", "megabytes"), *near_columns, ("", "text"))
        near = {one.name: (one.sqnr_db, one.top1, one.error) for one in self.agreement}
        best = self.recommended.name if self.recommended is not None else ""
        rows = tuple(
            (name, size, *near.get(name, (None, None, None)), "recommended" if name == best else None)
            for name, size in self.sizes.items()
        )
        return Table(f"Files, and how near they are to original.onnx on {self.agreement_on}", columns, rows)

    @property
    def parity(self) -> Table:
        """Torch against ONNX: both float files."""
        columns = (("file", "text"), ("opset", "count"), ("IR", "count"), ("cases", "count"))
        rows = []
        for one in (self.original, self.converted):
            word = "holds" if one.parity.passed else "FAILS"
            found = (len(one.parity.cases), f"{one.parity.relative:.1e}", one.parity.sqnr_db, word)
            rows.append((one.path.name, one.opset, one.ir_version, *found))
        more = (("relative", "text"), ("sqnr_db", "decibel"), ("parity", "text"))
        return Table("Parity: the model in torch against its file in onnxruntime", (*columns, *more), tuple(rows))

    @property
    def devices(self) -> Table:
        """What mobile providers make of the files."""
        rows = [(name, *row) for name, verdict in self.mobile.items() for row in verdict.table.rows]
        columns = next(iter(self.mobile.values())).table.columns
        return Table("Mobile providers, by onnxruntime's tables", (("file", "text"), *columns), tuple(rows))

    @property
    def tables(self) -> tuple[Table, ...]:
        """All that hold something, in the order of reading."""
        timed = [table for one in self.benches for table in one.tables]
        rounded = [one.table for one in self.quantized]
        return tuple(table for table in (self.files, self.parity, *timed, self.devices, *rounded) if table.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; files by name, for nobody else has this folder where it is here."""
        files = [{**one.to_dict(), "path": one.path.name, "sha256": self.sha256[one.path.name]} for one in self._every]
        near = [{key: jsonable(value) for key, value in vars(one).items()} for one in self.agreement]
        return {
            "files": files,
            "agreement": {"on": self.agreement_on, "files": near},
            "mobile": {name: verdict.to_dict() for name, verdict in self.mobile.items()},
            "latency": [one.moved_to(Path()).to_dict() for one in self.benches],
            "recommended": None if self.recommended is None else self.recommended.to_dict(),
            "preparation": self.preparation.to_dict(),
            "command": self.command,
        }

    def __str__(self) -> str:
        parts = [self.files.text(), self.parity.text(), *map(str, self.benches), self.devices.text()]
        return "\n\n".join(parts)
