"""Tables: raw values with the way each column is shown, as text, Markdown, CSV or records.

The drawing is tabulate's. Names in them are a model's own, and a model may come from anywhere: what would move a
terminal's cursor, be markup in Markdown or be computed in a spreadsheet is written so that it is only read.
"""

from __future__ import annotations

import csv
import io
import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from convsurgeon.base.words import heading, legend

SHOWN: dict[str, Callable[[Any], str]] = {
    "text": str,
    "name": heading,
    "count": lambda value: f"{value:,}",
    "share": lambda value: f"{100 * value:.1f} %",
    "ratio": lambda value: f"{value:.3f}",
    "decibel": lambda value: "exact" if value == math.inf else f"{value:.1f}",
    "number": lambda value: f"{value:,}" if isinstance(value, int) else f"{value:.4g}",
    "ms": lambda value: f"{value:.3f}",
    "megabytes": lambda value: f"{value / 1e6:,.2f}",
    "times": lambda value: f"{value:.2f}",
    "interval": lambda value: f"{value[0]:.3f} to {value[1]:.3f}",
}
"""How a column's values are written: 0.113 is `11.3 %` as a share and `0.113` as a ratio."""

_WIDTH = 120
_MARKUP = re.compile(r"[|\[\]`*~]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


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
        title = "\n".join(map(printable, self.title.split("\n")))
        words = textwrap.fill("; ".join(f"{name}: {means}" for name, means in legend(self.filled().headers)), _WIDTH)
        return "\n".join(filter(None, (title, self._draw("simple"), words)))

    def markdown(self) -> str:
        """For a page: the title as a heading, markup in names escaped."""
        words = "; ".join(f"{name}: {means}" for name, means in legend(self.filled().headers))
        parts = (f"## {in_markdown(self.title)}", self._draw("github"), in_markdown(words))
        return "\n\n".join(filter(None, parts))

    def csv(self) -> str:
        """For a spreadsheet: raw values, one header line; what it would take for a formula has an apostrophe."""
        target = io.StringIO()
        writer = csv.writer(target, lineterminator="\n")
        for row in (self.headers, *self.rows):
            writer.writerow([f"'{one}" if isinstance(one, str) and one.startswith(_FORMULA) else one for one in row])
        return target.getvalue()

    def records(self) -> list[dict[str, Any]]:
        """For JSON: raw values by column; numbers JSON has no word for (inf, nan) as text."""
        rows = [
            [str(one) if isinstance(one, float) and not math.isfinite(one) else one for one in r] for r in self.rows
        ]
        return [dict(zip(self.headers, row, strict=True)) for row in rows]

    def filled(self) -> Table:
        """Return the table without columns that hold nothing."""
        held = [index for index in range(len(self.columns)) if any(row[index] is not None for row in self.rows)]
        columns = tuple(self.columns[index] for index in held)
        return Table(self.title, columns, tuple(tuple(row[index] for index in held) for row in self.rows))

    def _draw(self, style: str) -> str:
        table = self.filled()
        kinds = [kind for _, kind in table.columns]
        cells = [
            ["-" if value is None else SHOWN[kind](value) for kind, value in zip(kinds, row, strict=True)]
            for row in table.rows
        ]
        shown = in_markdown if style == "github" else printable
        cells = [[shown(cell) for cell in row] for row in cells]
        align = ["left" if kind in ("text", "name") else "right" for kind in kinds]
        headers = [shown(heading(name)) for name in table.headers]
        return tabulate(cells, headers, tablefmt=style, colalign=align if cells else None, disable_numparse=True)


def printable(text: str) -> str:
    """Return a text for one line of a terminal, with invisible characters as their escapes."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def in_markdown(text: str) -> str:
    """Return a text with the special characters of Markdown and HTML escaped."""
    safe = printable(text.replace("\n", " ")).replace("&", "&amp;").replace("<", "&lt;")  # ">" reads as it is
    return _MARKUP.sub(r"\\\g<0>", "&gt;" + safe[1:] if safe.startswith(">") else safe)
