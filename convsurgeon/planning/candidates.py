"""What becomes of every conv: the first candidate that fits and saves work, or the reason it is left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor, nn

from convsurgeon.base.errors import FormError
from convsurgeon.forms.catalogue import DEFAULT_FORMS
from convsurgeon.forms.form import Form, Known
from convsurgeon.forms.geometry import Geometry
from convsurgeon.graph.capture import Capture, capture
from convsurgeon.graph.model_files import Model
from convsurgeon.graph.site import Site
from convsurgeon.planning.figures import figures
from convsurgeon.planning.plan import Change, Plan, Skip
from convsurgeon.planning.select import Policy, Predicate, resolve


def plan(
    model: Model,
    example: object = None,
    *,
    forms: Sequence[Form] = DEFAULT_FORMS,
    policy: Predicate | None = None,
    allow_growth: bool = False,
) -> Plan:
    """Decides for every conv which form it takes, or why it is left alone; touches nothing.

    Args:
        model: any module that runs on the example, or the path of an ONNX file.
        example: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`.
        forms: candidates for every site; the first that fits, and makes the layer cheaper, is taken.
        policy: which sites may be touched; the default leaves the stem alone.
        allow_growth: take a form even where it has more MACs or parameters than the conv.

    Raises:
        CaptureError: the model does not run on the example.
        PolicyError: a name in the policy fits no conv.
        FormError: a layer demanded by its exact name cannot take any of the forms.
    """
    return plan_captured(capture(model, example), forms, policy, allow_growth)


def plan_captured(
    seen: Capture,
    forms: Sequence[Form],
    policy: Predicate | None,
    allow_growth: bool,
    kernels: Mapping[str, Kernel] | None = None,
) -> Plan:
    """`plan` for a model that is captured already, and perhaps its kernels."""
    if not forms:
        raise FormError("forms: the list is empty; pass at least one form, for example DepthwiseSeparable(rank=2)")
    chosen, demanded = resolve(policy, seen.sites)
    kernels = kernels_of(seen) if kernels is None else kernels
    steps = []
    for site in seen.sites:
        step = _step(site, kernels.get(site.name), forms, chosen, allow_growth)
        if isinstance(step, Skip) and not demanded.isdisjoint(site.names):
            raise FormError(
                f"{site.name}: {step.reason}; it was asked for by name: leave the name out to go on without"
            )
        steps.append(step)
    return Plan(tuple(steps), seen.cost, str(seen.example))


def candidates(
    base: Plan, kernels: Mapping[str, Kernel], forms: Sequence[Form], allow_growth: bool
) -> dict[str, list[Change]]:
    """Every change that the forms could make to every site that `base`, made of the same forms, changes at all."""
    found: dict[str, list[Change]] = {}
    for name, step in base.changes.items():
        tried = (change_of(step.site, kernels[name], form, allow_growth) for form in forms)
        changes = {change.form.label: change for change in tried if isinstance(change, Change)}
        found[name] = list(changes.values())
    return found


class Kernel:
    """A conv's weight, read when it is first asked for, and what the forms tried so far found out about it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self._conv = conv
        self._known: Known = {}

    @cached_property
    def weight(self) -> Tensor:
        """The kernel; to read a parametrised one may change the model."""
        return self._conv.weight

    @cached_property
    def finite(self) -> bool:
        """Whether no value is NaN or infinity; taken for granted on the meta device."""
        return self.weight.is_meta or bool(self.weight.isfinite().all())

    def settle(self, form: Form, geometry: Geometry) -> Form:
        """The form with its rank settled."""
        return form.settle(geometry, self.weight, self._known)

    def lost(self, form: Form, geometry: Geometry) -> float | None:
        """Share of the energy that a settled form drops."""
        return form.lost(geometry, self.weight, self._known)


def kernels_of(seen: Capture) -> dict[str, Kernel]:
    """The kernels of all convs, by every name they have."""
    named = seen.model.named_modules(remove_duplicate=False)
    return {name: Kernel(conv) for name, conv in named if isinstance(conv, nn.Conv2d)}


def _step(
    site: Site, kernel: Kernel | None, forms: Sequence[Form], policy: Policy, allow_growth: bool
) -> Change | Skip:
    """What becomes of one site."""
    if site.obstacle:
        return Skip(site, site.obstacle)
    if not policy(site):
        return Skip(site, f"left out by the policy {policy}")
    assert kernel is not None
    reasons: list[str] = []
    for form in forms:
        found = change_of(site, kernel, form, allow_growth)
        if isinstance(found, Change):
            return found
        if found not in reasons:
            reasons.append(found)
    return Skip(site, "; ".join(reasons))


def change_of(site: Site, kernel: Kernel, form: Form, allow_growth: bool) -> Change | str:
    """The change that a form makes to a site, or why it makes none."""
    found = settled(site, kernel, form, allow_growth)
    if isinstance(found, str):
        return found
    form, params, macs = found
    return Change(site, form, kernel.lost(form, site.geometry), params, macs)


def settled(site: Site, kernel: Kernel, form: Form, allow_growth: bool) -> tuple[Form, int, int] | str:
    """The form with its rank settled, its parameters and its MACs at a site, or why the site does not take it."""
    geometry = site.geometry
    if reason := form.check(geometry):
        return reason
    if not kernel.finite:
        return "its weight holds NaN or infinity"
    form = kernel.settle(form, geometry)
    params, macs = figures(site, form)
    if not allow_growth and (macs >= site.macs or params > site.params):
        share = macs / max(1, site.macs)  # an example without images costs nothing
        return f"{form.label} has {share:.2f} of its MACs and {params / site.params:.2f} of its parameters"
    return form, params, macs
