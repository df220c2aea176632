"""What a settled form comes to at a site, and whether the figures of a plan that was read are those."""

from __future__ import annotations

from collections.abc import Iterable

from convsurgeon.base.errors import PlanError
from convsurgeon.forms.form import Form
from convsurgeon.graph.cost import Cost
from convsurgeon.graph.site import Site


def figures(site: Site, form: Form) -> tuple[int, int]:
    """Parameters, and MACs of all calls."""
    macs = sum(site.images(call) * form.macs(site.geometry, site.size(call)) for call in site.calls)
    return form.params(site.geometry), macs


def check_change(site: Site, form: Form, after: tuple[int, ...]) -> None:
    """Whether a change has the figures that follow from its geometry, its calls and its form.

    Raises:
        ValueError: it has others.
    """
    if any(len(shape) <= len(site.geometry.kernel_size) for one in site.calls for shape in vars(one).values()):
        raise ValueError(f"{site.name}: a call's shape has too few dimensions")
    images = ((site.images(call), site.size(call)) for call in site.calls)
    dense = (site.geometry.params, sum(count * site.geometry.macs(size) for count, size in images))
    for words, found, wanted in (("", (site.params, site.macs), dense), ("_after", after, figures(site, form))):
        if tuple(found) != wanted:
            raise ValueError(
                f"{site.name}: params{words} {found[0]:,} and macs{words} {found[1]:,} do not add up, "
                f"{'the conv' if not words else form.label} has {wanted[0]:,} and {wanted[1]:,}"
            )


def check_sums(sites: Iterable[Site], cost: Cost) -> None:
    """Whether every conv is there once, and all together are no more than the model.

    Args:
        sites: those that are changed, and those that are not.
        cost: of the whole model.

    Raises:
        PlanError: one name stands for two convs, or the convs come to more than the model.
    """
    seen: dict[str, int] = {}
    macs = 0
    for index, site in enumerate(sites):
        macs += site.macs
        if not 0 <= site.share <= 1:
            raise PlanError(f"plan: layer {index}: {site.name}: share is {site.share}; make the plan again")
        for name in site.names:
            if name in seen:
                raise PlanError(f"plan: layers {seen[name]} and {index} are both {name}; make the plan again")
            seen[name] = index
    if macs > cost.macs:
        raise PlanError(f"plan: the layers have {macs:,} MACs, the model {cost.macs:,}; make the plan again")
