"""Energy curves: what share of a kernel's energy the first ranks keep, for the forms that may take its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from convsurgeon.forms.catalogue import INSPECTED
from convsurgeon.planning.plan import Change, Skip

Curves = Mapping[str, Mapping[str, tuple[float, ...]]]
"""Layer -> word of the form -> share kept at rank 1, 2, 3, ..."""

_RANKS = 9


def energy_curves(model: nn.Module, steps: Iterable[Change | Skip]) -> Curves:
    """Curves of every conv of the original model that has weights and could take a form, up to rank 9."""
    convs = dict(model.named_modules(remove_duplicate=False))
    curves: dict[str, dict[str, tuple[float, ...]]] = {}
    for step in steps:
        conv = convs.get(step.name)
        if not isinstance(conv, nn.Conv2d) or conv.weight.is_meta or step.site.obstacle:
            continue
        for form in INSPECTED:
            if form.check(step.site.geometry) is None and bool(conv.weight.isfinite().all()):
                energies = form.energies(step.site.geometry, conv.weight)
                total = float(energies.sum()) or 1.0
                kept = tuple(min(1.0, value / total) for value in energies.cumsum(0)[:_RANKS].tolist())
                curves.setdefault(step.name, {})[form.word] = kept
    return curves
