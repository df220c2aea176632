"""The scores of many ranks of a wide layer, whose fits take long: from one fit, three rough ones, and a curve.

A rough fit loses more than a whole one by much the same factor at every rank; the lowest rank, whose fit takes least,
tells it. The logarithm of the score is nearly a polynomial in the rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from convsurgeon.forms.form import Form
from convsurgeon.planning.plan import Change

POINTS = 3


def score_ranks(
    changes: Sequence[Change], fit: Callable[[Change], float], fit_roughly: Callable[[Change], float]
) -> dict[str, float]:
    """Return the scores of a site's changes by their form's label; most ranks of one form are interpolated.

    Args:
        changes: of one site, with settled ranks.
        fit: gives a change's score by a fit.
        fit_roughly: the same by a fit that takes a fraction of the time.
    """
    found: dict[str, float] = {}
    for family in _families(changes):
        ranks = sorted(family)
        chosen = sorted({ranks[round(at * (len(ranks) - 1) / (POINTS - 1))] for at in range(POINTS)})
        curve = _curve({rank: fit_roughly(family[rank]) for rank in chosen})
        if curve is not None:
            factor = fit(family[ranks[0]]) / curve(ranks[0])
            found |= {family[rank].form.label: factor * curve(rank) for rank in ranks}
    return found | {change.form.label: fit(change) for change in changes if change.form.label not in found}


def _families(changes: Sequence[Change]) -> list[dict[int, Change]]:
    """Return groups of changes that differ in rank alone, where there are more of them than are fitted."""
    families: dict[str, dict[int, Change]] = {}
    for change in changes:
        if (family := _family(change.form)) is not None:
            name, rank = family
            families.setdefault(name, {})[rank] = change
    return [family for family in families.values() if len(family) > POINTS + 1]


def _family(form: Form) -> tuple[str, int] | None:
    if not isinstance(form.rank, int):
        return None
    values = {name: value for name, value in form.to_dict().items() if name != "rank"}
    return str(values), form.rank


def _curve(known: Mapping[int, float]) -> Callable[[int], float] | None:
    """Return a curve through the scores of some ranks; None where one of them has no logarithm."""
    values = np.array(list(known.values()))
    if not (np.isfinite(values).all() and (values > 0).all()):
        return None
    ranks = np.array(list(known), dtype=float)
    coefficients = np.polyfit(ranks / ranks.max(), np.log(values), len(ranks) - 1)
    lowest, highest = float(values.min()), float(values.max())
    return lambda rank: min(max(math.exp(np.polyval(coefficients, rank / ranks.max())), lowest), highest)
