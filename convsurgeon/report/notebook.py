"""A report in a notebook: the first sentence, before and after, and the plans that were tried as points."""

from __future__ import annotations

import html
import math

from tabulate import tabulate

from convsurgeon.base.tables import SHOWN
from convsurgeon.base.words import heading
from convsurgeon.report.report import Report

_WIDTH, _HEIGHT, _EDGE = 360, 180, 30
_COLOURS = {"taken": "#1a7f37", "good enough": "#0969da", "loses too much": "#9a6700"}


def to_html(report: Report, first: str) -> str:
    """Return a report as a piece of HTML, which begins with its sentence."""
    shown = SHOWN["number"]
    rows = [(heading(name), shown(was), shown(now)) for name, was, now, _ in report.summary.rows]
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
        colour = _COLOURS[word]
        title = f"{one.speed_up:.2f} times as fast, {one.value:.4g}: {word}"
        points.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="5" fill="{colour}"><title>{title}</title></circle>')
    ends = f"to the right {min(across):.2f} to {max(across):.2f} times as fast, upwards {min(up):.4g} to {max(up):.4g}"
    key = ", ".join(f'<span style="color:{colour}">\u25cf</span> {word}' for word, colour in _COLOURS.items())
    svg = f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{"".join(points)}</svg>'
    return f"{svg}<p>{ends}; asked for: {html.escape(report.goal)}<br>{key}</p>"


def _place(value: float, every: list[float], size: int) -> float:
    """Return where a value lies between the smallest and the largest."""
    low, high = min(every), max(every)
    return _EDGE + (size - 2 * _EDGE) * ((value - low) / (high - low) if high > low else 0.5)
