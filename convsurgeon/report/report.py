"""A report: the rows of a conversion, written as text, Markdown, CSV, JSON or a page."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Self

from convsurgeon.base.tables import in_markdown, jsonable, printable
from convsurgeon.planning.plan import Change
from convsurgeon.report.page import page
from convsurgeon.report.rows import Rows


@dataclass(frozen=True)
class Report(Rows):
    """Size and cost of both models, every conv, every parameter tensor, and how near the outputs are; see `Rows`."""

    def with_metric(self, name: str, before: float, after: float) -> Self:
        """The report with one more line in its summary."""
        return dataclasses.replace(self, metrics=(*self.metrics, (name, before, after)))

    def __str__(self) -> str:
        rewritten = sum(isinstance(step, Change) for step in self.steps)
        head = f"{rewritten} of {len(self.steps)} convs rewritten."
        tried = (self.tried, self.calibrated, self.recovered)
        shown = (self.layers, self.untraced, self.fits, *tried, self.summary, self.closeness)
        first = [*([self.speed] if self.speed else []), *(f"note: {note}" for note in self.notes)]
        return "\n\n".join([*map(printable, first), *(table.text() for table in shown if table.rows), head])

    def to_markdown(self) -> str:
        """A page with all tables."""
        first = (*([self.speed] if self.speed else []), *self.notes)
        return (
            "# convsurgeon report\n\n"
            + "\n\n".join([*map(in_markdown, first), *(table.markdown() for table in self.tables)])
            + "\n"
        )

    def to_html(self, title: str = "Model") -> str:
        """One self-contained page, without what only an export knows; `export` writes the whole one."""
        return page(title, self, {}, {})

    def to_csv(self) -> str:
        """The table of layers, raw values."""
        return self.layers.csv()

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "example": self.example,
            "notes": list(self.notes),
            "summary": self.summary.records(),
            "fidelity": None
            if self.fidelity is None
            else {name: jsonable(value) for name, value in dataclasses.asdict(self.fidelity).items()},
            "speed": self.speed,
            "goal": self.goal,
            "trials": self.tried.records(),
            "calibration": self.calibrated.records(),
            "recovery": self.recovered.records(),
            "layers": self.layers.records(),
            "fits": self.fits.records(),
            "untraced": self.untraced.records(),
            "learnables": self.learnables.records(),
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)
