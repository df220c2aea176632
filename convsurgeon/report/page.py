"""The report as one self-contained HTML page.

    numbers -> `charts` (positions and words, plain values) -> templates/report.html (escaped by Jinja) -> text

The page loads nothing: style and script stand in it, and a content security policy forbids everything else, by hash of
the script, so not even a layer that is called `<script>` could run. Jinja loads on the first page.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import import_module
from importlib.resources import files
from typing import Any

from convsurgeon.base.tables import SHOWN, Table
from convsurgeon.planning.inspection import Curves
from convsurgeon.report import charts
from convsurgeon.report.rows import Rows
from convsurgeon.report.sentence import cautions, sentence


def page(title: str, report: Rows, curves: Curves, deployed: Mapping[str, Any]) -> str:
    """Renders a report.

    Args:
        title: what was converted, for example the name of the model's class.
        report: of the conversion.
        curves: energy by rank, from `energy_curves`; may be empty.
        deployed: what `deploy.Deployment.to_dict` gives; may be empty.
    """
    jinja = import_module("jinja2")
    places = jinja.PackageLoader("convsurgeon.report", "templates")
    environment = jinja.Environment(
        loader=places, autoescape=True, undefined=jinja.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = shown
    script = (files("convsurgeon.report") / "templates" / "report.js").read_text(encoding="utf-8").strip()
    context = _context(title, report, curves, deployed)
    text: str = environment.get_template("report.html").render(script=jinja_safe(script), hash=_hash(script), **context)
    return text


def shown(value: Any, kind: str) -> str:
    """A value as tables write it; a dash for None."""
    return "–" if value is None else SHOWN[kind](value)


def jinja_safe(text: str) -> Any:
    """Our own script, which must not be escaped."""
    return import_module("markupsafe").Markup(text)


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _context(title: str, report: Rows, curves: Curves, deployed: Mapping[str, Any]) -> dict[str, Any]:
    timed = deployed["latency"][0] if deployed.get("latency") else {}
    more = (report.closeness, report.calibrated, report.fits, report.untraced)
    return {
        "title": title,
        "sentence": sentence(report, deployed),
        "cautions": cautions(report, deployed),
        "example": report.example,
        "cards": charts.cards(report, deployed),
        "bars": charts.bars(report, deployed),
        "tradeoff": charts.tradeoff(deployed),
        "layers": charts.layers(report, curves, timed),
        "skips": charts.skips(report),
        "timed": timed,
        "speeds": charts.speeds(timed),
        "shares": charts.shares(timed),
        "deployed": deployed,
        "tables": [_table(table) for table in more if table.rows],
        "learnables": _table(report.learnables),
        "calibrated": bool(report.reconstruction),
    }


def _table(table: Table) -> dict[str, Any]:
    """A table as cells of text, with whether each is a number."""
    kinds = [kind for _, kind in table.columns]
    rows = [
        [(shown(value, kind), kind != "text") for kind, value in zip(kinds, row, strict=True)] for row in table.rows
    ]
    heads = [(name.replace("_", " "), kind != "text") for name, kind in table.columns]
    return {"title": table.title, "heads": heads, "rows": rows}
