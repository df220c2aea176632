"""A report in a notebook: the first sentence, before and after, and the plans that were tried as points."""

from __future__ import annotations

import html
import math

from tabulate import tabulate

from convsurgeon.base.words import heading
from convsurgeon.report.report import Report

_WIDTH, _HEIGHT, _EDGE = 360, 180, 30


def to_html(report: Report, first: str) -> str:
    """Return a report as a piece of HTML, which begins with its sentence."""
    rows = [(heading(name), f"{was:,.6g}", f"{now:,.6g}") for name, was, now, _ in report.summary.rows]
    table = tabulate(rows, ("", "before", "after"), "html", disable_numparse=True, colalign=("left", "right", "right"))
    return f"<div><p><b>{html.escape(first)}</b></p>{table}{_draw_trials(report)}</div>"


def _draw_trials(report: Report) -> str:
    """Return the trials as a drawing: to the right faster, upwards a larger figure of what the goal looks at."""
    known = [one for one in report.trials if math.isfinite(one.speed_up) and math.isfinite(one.value)]
    if len(known) < 2:
        return ""
    across, up = [one.speed_up for one in known], [one.value for one in known]
    points = []
    for one in known:
        x, y = _place(one.speed_up, across, _WIDTH), _HEIGHT - _place(one.value, up, _HEIGHT)
        word = "taken" if one.taken else "good enough" if one.good_enough else "loses too much"
        colour = "#1a7f37" if one.taken else "#0969da" if one.good_enough else "#9a6700"
        title = f"{one.speed_up:.2f} times as fast, {one.value:.4g}: {word}"
        points.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="5" fill="{colour}"><title>{title}</title></circle>')
    label = f"{min(across):.2f} to {max(across):.2f} times as fast; {min(up):.4g} to {max(up):.4g}, {report.goal}"
    text = f'<text x="{_EDGE}" y="{_HEIGHT - 4}" font-size="11" fill="currentColor">{html.escape(label)}</text>'
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{"".join(points)}{text}</svg>'


def _place(value: float, every: list[float], size: int) -> float:
    """Return where a value lies between the smallest and the largest."""
    low, high = min(every), max(every)
    return _EDGE + (size - 2 * _EDGE) * ((value - low) / (high - low) if high > low else 0.5)
