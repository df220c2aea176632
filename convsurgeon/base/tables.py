"""Tables: raw values with the way each column is shown, as text, Markdown, CSV or records.

The drawing is tabulate's.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate


def _count(value: Any) -> str:
    return f"{value:,}"


def _share(value: Any) -> str:
    return f"{100 * value:.1f} %"


def _ratio(value: Any) -> str:
    return f"{value:.3f}"


def _decibel(value: Any) -> str:
    return "exact" if value == math.inf else f"{value:.1f}"


SHOWN: dict[str, Callable[[Any], str]] = {
    "text": str,
    "count": _count,
    "share": _share,
    "ratio": _ratio,
    "decibel": _decibel,
    "number": lambda value: f"{value:,}" if isinstance(value, int) else f"{value:.4g}",
    "ms": lambda value: f"{value:.3f}",
    "megabytes": lambda value: f"{value / 1e6:,.2f}",
    "times": lambda value: f"{value:.2f}",
    "interval": lambda value: f"{value[0]:.3f} to {value[1]:.3f}",
}
"""How a column's values are written: 0.113 is `11.3 %` as a share and `0.113` as a ratio."""


@dataclass(frozen=True)
class Table:
    """A title, columns as (name, key of `SHOWN`), rows of raw values; None is shown as a dash."""

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Any, ...], ...]

    @property
    def headers(self) -> list[str]:
        """Names of the columns."""
        return [name for name, _ in self.columns]

    def __str__(self) -> str:
        return self.text()

    def text(self) -> str:
        """For a terminal."""
        return f"{self.title}\n{self._draw('simple')}" if self.title else self._draw("simple")

    def markdown(self) -> str:
        """For a page: the title as a heading, pipes in cells escaped."""
        return f"## {self.title}\n\n{self._draw('github')}"

    def csv(self) -> str:
        """For a spreadsheet: raw values, one header line."""
        target = io.StringIO()
        writer = csv.writer(target, lineterminator="\n")
        writer.writerows([self.headers, *self.rows])
        return target.getvalue()

    def records(self) -> list[dict[str, Any]]:
        """For JSON: raw values by column; numbers JSON has no word for (inf, nan) as text."""
        return [dict(zip(self.headers, map(jsonable, row), strict=True)) for row in self.rows]

    def _draw(self, style: str) -> str:
        kinds = [kind for _, kind in self.columns]
        cells = [
            ["-" if value is None else SHOWN[kind](value) for kind, value in zip(kinds, row, strict=True)]
            for row in self.rows
        ]
        if style == "github":
            cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in cells]
        align = ["left" if kind == "text" else "right" for kind in kinds]
        return tabulate(cells, self.headers, tablefmt=style, colalign=align if cells else None, disable_numparse=True)


def jsonable(value: Any) -> Any:
    """A value as strict JSON has it."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
