"""The report as one HTML page that loads nothing: style and script stand in it.

Names in it are a model's own and are escaped by Jinja. A content security policy allows only our script, by its hash.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
from importlib.resources import files

import jinja2
from markupsafe import Markup

from convsurgeon.base.tables import SHOWN
from convsurgeon.base.version import version
from convsurgeon.base.words import heading, legend
from convsurgeon.planning.inspection import Curves
from convsurgeon.report import cards, charts
from convsurgeon.report.bundle import Bundle
from convsurgeon.report.cautions import cautions, remarks
from convsurgeon.report.held_out import HeldOut
from convsurgeon.report.report import Report
from convsurgeon.report.running import running_code
from convsurgeon.report.sentence import sentence


def page(
    title: str,
    report: Report,
    curves: Curves | None = None,
    bundle: Bundle | None = None,
    held_out: HeldOut | None = None,
) -> str:
    """Return a report as HTML, with `curves` of energy by rank from `energy_curves`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("convsurgeon.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = lambda value, kind: "–" if value is None else SHOWN[kind](value)
    environment.filters |= {"heading": heading, "legend": legend}
    script = (files("convsurgeon.report") / "templates" / "report.js").read_text(encoding="utf-8").strip()
    bench = None if bundle is None else bundle.bench
    return environment.get_template("report.html").render(
        script=Markup(script),
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=title,
        report=report,
        bundle=bundle,
        bench=bench,
        sentence=sentence(report, bundle),
        cautions=cautions(report, bundle),
        remarks=remarks(report, bundle),
        version=version(),
        date=datetime.date.today().isoformat(),
        best=None if bundle is None else bundle.recommended,
        running_code=running_code,
        held_out=held_out,
        cards=cards.draw_cards(report, bundle),
        bars=cards.draw_bars(report, bundle),
        tradeoff=None if bundle is None else charts.draw_tradeoff(bundle),
        layers=charts.draw_layers(report, curves or {}, bench),
        skips=charts.group_skips(report),
        speeds=None if bench is None else charts.draw_speeds(bench.timings),
        calibrated=report.reconstruction is not None,
    )
