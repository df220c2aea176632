"""What every conv would keep: the share of its kernel's energy in its first ranks, for the forms that tell by SVD."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from convsurgeon.base.normal import in_normal_mode
from convsurgeon.base.tables import Table
from convsurgeon.forms.catalogue import INSPECTED
from convsurgeon.graph.model_files import Model
from convsurgeon.graph.site import Site
from convsurgeon.planning.layers_as_convs import capture_as_convs
from convsurgeon.planning.plan import Change, Skip

Curves = Mapping[str, Mapping[str, tuple[float, ...]]]
"""Layer -> word of the form -> share kept at rank 1, 2, 3, ..."""

RANKS = (1, 2, 3)
_LONGEST = 9


@in_normal_mode
def inspect(model: Model, example: object = None) -> Table:
    """Return one row per conv: what it is and costs, and the share of its energy that ranks 1, 2 and 3 keep.

    At rank 1 the blueprint column is the share of a filter's variance that the first principal component explains, the
    figure by which Haase & Amthor (CVPR 2020, section 3) show that trained filters are nearly one blueprint each.

    Args:
        model: any module that runs on the example, or the path of an ONNX file.
        example: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`.

    Raises:
        CaptureError: the model does not run on the example.
    """
    seen = capture_as_convs(model, example)
    convs = dict(seen.model.named_modules(remove_duplicate=False))
    kept = [(f"{form.word}_{rank}", "share") for form in INSPECTED for rank in RANKS]
    columns = (("layer", "text"), ("conv", "text"), ("params", "count"), ("macs", "count"), ("share", "share"), *kept)
    rows = []
    for site in seen.sites:
        curves = _curves(site, convs.get(site.name))
        shares = [
            curves[form.word][min(rank, len(curves[form.word])) - 1] if form.word in curves else None
            for form in INSPECTED
            for rank in RANKS
        ]
        note = site.obstacle or INSPECTED[0].check(site.geometry) or ""
        rows.append((site.name, str(site.geometry), site.params, site.macs, site.share, *shares, note))
    title = f"Share of the kernel's squared weights kept at rank {', '.join(map(str, RANKS))}; input {seen.example}"
    return Table(title, (*columns, ("reason", "text")), tuple(rows))


def energy_curves(model: nn.Module, steps: Iterable[Change | Skip]) -> Curves:
    """Return the curves, up to rank 9, of every conv of the original model that has weights and can be changed."""
    convs = dict(model.named_modules(remove_duplicate=False))
    found = {step.name: _curves(step.site, convs.get(step.name)) for step in steps if not step.site.obstacle}
    return {name: curves for name, curves in found.items() if curves}


def _curves(site: Site, conv: nn.Module | None) -> dict[str, tuple[float, ...]]:
    """Return the share kept at rank 1, 2, ... by the form's word; empty without finite weights."""
    if not isinstance(conv, nn.Conv2d) or conv.weight.is_meta or not bool(conv.weight.isfinite().all()):
        return {}
    curves = {}
    for form in INSPECTED:
        if form.check(site.geometry) is None:
            energies = form.energies(site.geometry, conv.weight)
            total = float(energies.sum())
            kept = energies.cumsum(0)[:_LONGEST].tolist()
            curves[form.word] = tuple(min(1.0, value / total) if total > 0 else 1.0 for value in kept)
    return curves
