"""What every conv would keep: the energy in its first ranks, for both forms."""

from __future__ import annotations

from torch import nn

from convsurgeon.base.tables import Table
from convsurgeon.forms.catalogue import INSPECTED
from convsurgeon.graph.capture import capture
from convsurgeon.graph.model_files import Model
from convsurgeon.graph.site import Site

RANKS = (1, 2, 3)


def inspect(model: Model, example: object = None) -> Table:
    """One row per conv: what it is and costs, and the share of its kernel's energy that ranks 1, 2 and 3 keep.

    At rank 1 the blueprint column is the share of a filter's variance that the first principal component explains, the
    figure by which Haase & Amthor (CVPR 2020, section 3) show that trained filters are nearly one blueprint each.

    Args:
        model: any module that runs on the example, or the path of an ONNX file.
        example: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`.

    Raises:
        CaptureError: the model does not run on the example.
    """
    seen = capture(model, example)
    convs = dict(seen.model.named_modules(remove_duplicate=False))
    kept = [(f"{form.word}_{rank}", "share") for form in INSPECTED for rank in RANKS]
    columns = (("layer", "text"), ("conv", "text"), ("params", "count"), ("macs", "count"), ("share", "share"), *kept)
    rows = [
        (site.name, str(site.geometry), site.params, site.macs, site.share, *_kept(site, convs.get(site.name)), note)
        for site in seen.sites
        for note in [site.obstacle or INSPECTED[0].check(site.geometry) or ""]
    ]
    title = f"Energy kept at rank {', '.join(map(str, RANKS))}, for an input of {seen.example}"
    return Table(title, (*columns, ("reason", "text")), tuple(rows))


def _kept(site: Site, conv: nn.Module | None) -> list[float | None]:
    """Share kept at each rank and form; None where the form does not apply or the weights have no values."""
    shares: list[float | None] = []
    for form in INSPECTED:
        if not isinstance(conv, nn.Conv2d) or conv.weight.is_meta or form.check(site.geometry):
            shares.extend([None] * len(RANKS))
            continue
        energies = form.energies(site.geometry, conv.weight)
        total = float(energies.sum())
        shares.extend(float(energies[:rank].sum()) / total if total > 0 else 1.0 for rank in RANKS)
    return shares
