"""The errors of many ranks from those of four: of wide layers, whose fits take long, the others are read off a curve.

The logarithm of a fit's error is nearly a cubic in the rank. On the convs of ResNet-20, CP of eight widths, four of
them fitted: the other four are off by 1.5 % in the mean and 5 % at worst (three fitted: 3.5 and 8; straight lines
between four: 3 and 6). Neighbouring widths differ by a third.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from convsurgeon.forms.branched import Branched
from convsurgeon.forms.form import Form
from convsurgeon.planning.plan import Change

POINTS = 4

Errors = tuple[float, ...]


def read_off(changes: Sequence[Change], fitted: Callable[[Change], Errors]) -> dict[str, Errors]:
    """The errors of all changes of a site by their form's label; `fitted` is asked for as few as will do.

    Args:
        changes: of one site, settled.
        fitted: a change's errors, by a fit.
    """
    found: dict[str, Errors] = {}
    for family in _families(changes):
        ranks = sorted(family)
        chosen = {ranks[round(at * (len(ranks) - 1) / (POINTS - 1))] for at in range(POINTS)}
        known = {rank: fitted(family[rank]) for rank in sorted(chosen)}
        found |= {family[rank].form.label: errors for rank, errors in known.items()}
        if (curve := _curve(known)) is not None:
            found |= {family[rank].form.label: curve(rank) for rank in ranks if rank not in known}
    return found | {change.form.label: fitted(change) for change in changes if change.form.label not in found}


def _families(changes: Sequence[Change]) -> list[dict[int, Change]]:
    """Changes that differ in rank alone, more than four to a family."""
    families: dict[str, dict[int, Change]] = {}
    for change in changes:
        if (family := _family(change.form)) is not None:
            name, rank = family
            families.setdefault(name, {})[rank] = change
    return [family for family in families.values() if len(family) > POINTS]


def _family(form: Form) -> tuple[str, int] | None:
    if not isinstance(form, Branched) or not isinstance(form.rank, int):
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
