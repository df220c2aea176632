"""A report in one sentence, and in ten lines: one plan, one file, one setting, and what the user's own measure says.

What may be wrong comes first, then what the network does now where its user looks (the metric, else the decisions that
stay, else the error), then how much faster it is, with an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tabulate import tabulate

from convsurgeon.base.tables import printable
from convsurgeon.fit.fidelity import Fidelity
from convsurgeon.graph.decisions import interval
from convsurgeon.int8.compare import Agreement
from convsurgeon.planning.plan import Change
from convsurgeon.report.bundle import CONVERTED, DENSE_INT8, ORIGINAL, Bundle, Recommended
from convsurgeon.report.report import Report
from convsurgeon.timing.comparison import ComparedFile, Comparison

LINES = 10
_LITTLE = 1.5
"""Speed-up below which the sentence says what else could be had."""


def sentence(report: Report, bundle: Bundle | None = None) -> str:
    """Return what may be wrong, what the network does now, how fast it is, the file to ship, and what was done."""
    little = report.outlook if _gain(report, bundle) < _LITTLE else ""
    return " ".join(filter(None, (report.warning, _headline(report, bundle), _done(report, bundle), little)))


def lines(report: Report, bundle: Bundle | None = None, *, where: str, notes: Sequence[str] = ()) -> list[str]:
    """Return the ten lines that are printed of a conversion: `where` to look next is the last, notes fill the room."""
    first = [
        *filter(None, (report.warning, _headline(report, bundle))),
        _done(report, bundle),
        *_figures(report, bundle),
    ]
    remarks = [*filter(None, (report.outlook,)), *notes]
    room = LINES - len(first) - 1
    return [*map(printable, (*first, *remarks[:room])), where]


def count_threads(count: int) -> str:
    """Return a number of threads in words."""
    return f"{count} thread{'s' if count > 1 else ''}"


def name_setting(timing: Recommended | Comparison) -> str:
    """Return threads, and the level of the runtime's optimisations where they are not all on."""
    level = "" if timing.level == "all" else f", optimisation level {timing.level}"
    return f"{count_threads(timing.threads)}{level}"


def _headline(report: Report, bundle: Bundle | None) -> str:
    """Return what is kept, and how fast, of the network or of the file to ship."""
    changed, best = _changes(report) > 0, bundle.recommended if bundle is not None else None
    if bundle is None or best is None:
        kept = _kept(report, bundle, CONVERTED) if changed else ""
        if not report.speed:
            return kept and f"{kept}."
        joined = "" if not kept else ". " if report.speed[0].isupper() else ", "
        return f"{kept}{joined}{report.speed}"
    if best.name != ORIGINAL:
        what = ", the original quantised and nothing else" if best.name == DENSE_INT8 else ""
        return f"{_kept(report, bundle, best.name)}, {_speed(best, best)}: ship {best.name}{what}."
    if not changed:
        return f"Ship {ORIGINAL}. {report.speed}".strip()
    row, timing = bundle.rows[CONVERTED], main_setting(bundle)
    return (
        f"Ship {ORIGINAL}: no other file is both faster and near enough. {CONVERTED}: "
        f"{_kept(report, bundle, CONVERTED)}, {_speed(row, timing)}."
    )


def _kept(report: Report, bundle: Bundle | None, name: str) -> str:
    """Return what a file, or the converted network, does where its user looks."""
    if report.metrics and (bundle is None or name == CONVERTED or name in bundle.values):
        metric, before, after = report.metrics[-1]
        after = after if bundle is None else bundle.values.get(name, after)
        doubt = None if bundle is None else bundle.doubts.get(name)
        return f"{metric} {before:.4g} -> {after:.4g}{f' (± {doubt:.2g})' if doubt else ''}"
    near = None if bundle is None else bundle.near.get(name)
    found: Agreement | Fidelity | None = near or report.fidelity
    if found is None:
        return "outputs were not compared"
    where = f"{found.rows} {'held-out images' if report.reconstruction is not None else 'rows of the example'}"
    if bundle is not None and near is not None:
        where = bundle.agreement_on
    share = found.top1 if isinstance(found, Agreement) else found.agreement
    if share is not None and found.rows:
        low, high = interval(share, found.rows)
        lost = estimated_loss(report) if name == CONVERTED else math.nan
        close = "; the others were mostly close" if lost < (1 - share) / 2 else ""
        right = f"{close}, about {lost:.1%} of the right ones are lost" if math.isfinite(lost) else ""
        return f"{share:.1%} of decisions stay ({100 * low:.1f} to {100 * high:.1f}) on {where}{right}"
    if found.sqnr_db == math.inf:
        return f"the same outputs on {where}"
    if not found.sqnr_db > -math.inf:
        return f"outputs that cannot be compared with the original's on {where}"
    maps = report.fidelity is not None and report.fidelity.overlap is not None  # an image is none
    if found.overlap is not None and maps:
        return f"{found.overlap:.1%} of every class stay (intersection over union) on {where}"
    added = report.fidelity.added_db if report.fidelity is not None and name == CONVERTED else None
    if added is not None:
        return f"what it adds to the image differs by {_apart(added)} on {where}"
    return f"outputs differ by {_apart(found.sqnr_db)} on {where}"


def difference(sqnr_db: float) -> float:
    """Return the root mean square of an error in percent of that of what it is in."""
    return float(100 * 10 ** (-sqnr_db / 20))


def estimated_loss(report: Report) -> float:
    """Return the share of right decisions that the plan loses, by the original's own probabilities; NaN if unknown."""
    return next((one.lost for one in report.trials if one.taken), math.nan)


def _apart(sqnr_db: float) -> str:
    return f"{difference(sqnr_db):.2g}% (SQNR {sqnr_db:.1f} dB)"


def _speed(found: Recommended | ComparedFile, setting: Recommended | Comparison) -> str:
    """Return how fast a file is in one setting, with the interval."""
    where = f"with {name_setting(setting)}"
    word = getattr(found, "verdict", "faster")
    if word not in ("faster", "slower"):
        return f"{word} in speed {where}"
    low, high = found.interval
    slower = ", that is slower," if word == "slower" else ""
    return f"{found.speedup:.2f} times as fast{slower} ({low:.2f} to {high:.2f}) {where}"


def _done(report: Report, bundle: Bundle | None) -> str:
    """Return how many convs were rewritten, and what that saves."""
    changes = _changes(report)
    if not changes:
        return f"None of {len(report.steps)} convs was rewritten: the network is as it was."
    before, after = report.before, report.after
    text = f"{changes} of {len(report.steps)} convs rewritten: {_ratio(before.macs, after.macs)} times fewer MACs"
    if bundle is None:
        return f"{text}, {_ratio(before.params, after.params)} times fewer parameters."
    return f"{text}, {_size(bundle.sizes[bundle.shown])} instead of {_size(bundle.sizes[ORIGINAL])}."


def _figures(report: Report, bundle: Bundle | None) -> list[str]:
    """Return before and after as a small table: metric, milliseconds, size, MACs."""
    if not _changes(report) and (bundle is None or bundle.recommended is None):
        return []
    name = CONVERTED if bundle is None else bundle.shown
    before, after = report.before, report.before if name == DENSE_INT8 else report.after
    rows = []
    for metric, was, now in report.metrics[-1:]:
        found = now if bundle is None else bundle.values.get(name, now)
        rows.append([metric, f"{was:.4g}", f"{found:.4g}"])
    if times := _times(report, bundle, name):
        rows.append(["ms", *(f"{value:.3g}" for value in times)])
    if bundle is None:
        rows.append(["parameters", f"{before.params:,}", f"{after.params:,}"])
    else:
        rows.append(["MB", *(f"{bundle.sizes[one] / 1e6:.2f}" for one in (ORIGINAL, name))])
    rows.append(["MACs", f"{before.macs:,}", f"{after.macs:,}"])
    headers = ("", "before", "after") if bundle is None else ("", ORIGINAL, name)
    return tabulate(rows, headers, "plain", disable_numparse=True, colalign=("left", "right", "right")).splitlines()


def _times(report: Report, bundle: Bundle | None, name: str) -> tuple[float, float] | None:
    """Return milliseconds before and after, in the setting that the headline speaks of."""
    if bundle is not None:
        timed = () if bundle.bench is None else main_setting(bundle).rows
        rows = {row.name: row.best_ms for row in timed}
        return (rows[ORIGINAL], rows[name]) if name in rows else None
    taken = next((one for one in report.trials if one.taken and math.isfinite(one.measured_ms)), None)
    return None if taken is None else (taken.dense_ms, taken.measured_ms)


def main_setting(bundle: Bundle) -> Comparison:
    """Return the setting that the headline speaks of: that of the file to ship."""
    assert bundle.bench is not None
    best = bundle.recommended
    same = [one for one in bundle.bench.timings if best and (one.threads, one.level) == (best.threads, best.level)]
    return same[0] if same and best is not None and best.name != ORIGINAL else bundle.bench.main


def _gain(report: Report, bundle: Bundle | None) -> float:
    """Return the speed-up that the headline speaks of; 1 where there is none."""
    if bundle is not None and bundle.recommended is not None:
        return bundle.recommended.speedup
    return max((one.speed_up for one in report.trials if one.taken and math.isfinite(one.speed_up)), default=1.0)


def _changes(report: Report) -> int:
    return sum(isinstance(step, Change) for step in report.steps)


def _size(count_bytes: int) -> str:
    return f"{count_bytes / 1e6:.2f} MB" if count_bytes >= 1e5 else f"{count_bytes / 1e3:.1f} kB"


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.1f}" if after else "infinitely many"
