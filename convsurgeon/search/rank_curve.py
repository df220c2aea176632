"""The errors of many ranks of wide layers, whose fits take long: from one fit, three rough ones, and a curve.

What a rough fit loses more than a whole one is much the same share at every rank; the least rank, whose fit takes
least, tells it. On CRAFT's convs of 256 and 512 channels the highest ranks are off by 6 to 30 % so, in all layers to
the same side. The logarithm of the error is nearly a polynomial in the rank. On the convs of ResNet-20, CP of eight
widths, three of them fitted: the others are off by 3.5 % in the mean and 8 % at worst. Neighbouring widths differ by a
third.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from convsurgeon.forms.form import Form
from convsurgeon.planning.plan import Change

POINTS = 3

Errors = tuple[float, ...]


def read_off(
    changes: Sequence[Change], fitted: Callable[[Change], Errors], roughly: Callable[[Change], Errors]
) -> dict[str, Errors]:
    """The errors of all changes of a site by their form's label; of ranks of one form, most are read off.

    Args:
        changes: of one site, settled.
        fitted: a change's errors, by a fit.
        roughly: likewise, by a fit that takes a fraction of the time.
    """
    found: dict[str, Errors] = {}
    for family in _families(changes):
        ranks = sorted(family)
        chosen = {ranks[round(at * (len(ranks) - 1) / (POINTS - 1))] for at in range(POINTS)}
        if (curve := _curve({rank: roughly(family[rank]) for rank in sorted(chosen)})) is not None:
            shares = [one / other for one, other in zip(fitted(family[ranks[0]]), curve(ranks[0]), strict=True)]
            for rank in ranks:
                errors = (share * error for share, error in zip(shares, curve(rank), strict=True))
                found[family[rank].form.label] = tuple(errors)
    return found | {change.form.label: fitted(change) for change in changes if change.form.label not in found}


def _families(changes: Sequence[Change]) -> list[dict[int, Change]]:
    """Changes that differ in rank alone, more of them than are fitted."""
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


def _curve(known: Mapping[int, Errors]) -> Callable[[int], Errors] | None:
    """Through the errors of some ranks; None where one of them has no logarithm."""
    values = np.array(list(known.values()))
    if not (np.isfinite(values).all() and (values > 0).all()):
        return None
    ranks = np.array(list(known), dtype=float)
    curves = np.polyfit(ranks / ranks.max(), np.log(values), len(ranks) - 1)
    lowest, highest = values.min(axis=0), values.max(axis=0)

    def curve(rank: int) -> Errors:
        found = [math.exp(np.polyval(column, rank / ranks.max())) for column in curves.T]
        return tuple(float(one) for one in np.clip(found, lowest, highest))

    return curve
