"""The forms that ship, how they are read from JSON, and which are tried by default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from convsurgeon.base.errors import FormError
from convsurgeon.forms.blueprint import Blueprint
from convsurgeon.forms.cp import CP
from convsurgeon.forms.factorised import Factorised
from convsurgeon.forms.form import Form
from convsurgeon.forms.lowrank import LowRank
from convsurgeon.forms.ranks import Energy, Share
from convsurgeon.forms.separable import DepthwiseSeparable
from convsurgeon.forms.subspace import BlueprintSubspace

FORMS: tuple[type[Form], ...] = (CP, DepthwiseSeparable, Blueprint, BlueprintSubspace, LowRank)

DEFAULT_FORMS: tuple[Form, ...] = (DepthwiseSeparable(rank=Energy(0.95)),)
"""What `convert` does without calibration data: separable, keeping 95 % of every kernel's energy."""

SHARES = (0.145, 0.18, 0.26, 0.3, 0.39, 0.43, 0.52, 0.64)
"""Shares of a layer's MACs for CP under a budget: just above even widths of 16, 32 and 64 channels."""

BUDGET_FORMS: tuple[Form, ...] = (
    *(CP(rank=Share(share)) for share in SHARES),
    *(DepthwiseSeparable(rank=rank) for rank in range(1, 4)),
    *(LowRank(rank=Share(share)) for share in (0.26, 0.38, 0.51, 0.63, 0.76)),
)
"""Candidates under a budget, unless others are named."""

Kinds = Sequence[type[Form]]
"""Classes of forms, beside those that ship."""

INSPECTED: tuple[Factorised, ...] = (DepthwiseSeparable(), Blueprint())
"""Forms whose spectra tell by rank what a kernel would keep."""


def form_from_dict(values: Mapping[str, Any], forms: Kinds = ()) -> Form:
    """Read what `to_dict` wrote; no code is ever imported by a name that a file holds."""
    fields = dict(values)
    name = fields.pop("form", None)
    kinds = {kind.name: kind for kind in (*FORMS, *forms)}
    if not isinstance(name, str) or name not in kinds:
        raise FormError(f"unknown form {name!r}; known are {', '.join(kinds)}; pass the class of another as forms=")
    return kinds[name].from_dict(fields)


def kinds_of(forms: Iterable[Form]) -> Kinds:
    """Return the classes of forms, for `form_from_dict`."""
    return list(dict.fromkeys(map(type, forms)))


def is_known(values: Mapping[str, Any], forms: Kinds = ()) -> bool:
    """Return whether `form_from_dict` knows a form of this name."""
    return values.get("form") in {kind.name for kind in (*FORMS, *forms)}
