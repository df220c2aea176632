"""Plans are made here: every conv takes the first form that fits it and saves work, or a reason why it stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor, nn

from convsurgeon.base.errors import FormError, expect
from convsurgeon.base.normal import in_normal_mode
from convsurgeon.forms.catalogue import DEFAULT_FORMS
from convsurgeon.forms.form import Form, Known
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.model_files import Model
from convsurgeon.graph.site import Site
from convsurgeon.planning.layers_as_convs import capture_as_convs
from convsurgeon.planning.plan import Change, Plan, Skip
from convsurgeon.planning.select import Predicate, check_glob, matches, resolve

Forms = Sequence[Form] | Mapping[str, Form | None]
"""Candidates for every conv, or by hand: a form, or None for dense, by the name of a conv or a pattern of names."""


@in_normal_mode
def plan(
    model: Model,
    example: object = None,
    *,
    forms: Forms = DEFAULT_FORMS,
    policy: Predicate | None = None,
    allow_growth: bool = False,
) -> Plan:
    """Decide for every conv which form it takes, or why it is left alone; change nothing.

    Args:
        model: any module that runs on the example, or the path of an ONNX file.
        example: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`.
        forms: candidates for every conv, of which the first that fits and makes it cheaper is taken. Or by hand, by
            name: `{"mid.3": CP(rank=24), "layer4.*": None, "*": DepthwiseSeparable(rank=2)}`. None leaves a conv
            dense. An exact name comes first, then the longest pattern; what has an exact name may also grow.
        policy: which convs may be changed; the default leaves the stem alone.
        allow_growth: take a form even where it has more MACs or parameters than the conv.

    Raises:
        CaptureError: the model does not run on the example.
        PolicyError: a name in the policy or in `forms` fits no conv.
        FormError: a conv demanded by its exact name cannot take any of its forms.
    """
    return plan_captured(capture_as_convs(model, example), forms, policy, allow_growth)


def plan_captured(
    seen: Capture,
    forms: Forms,
    policy: Predicate | None,
    allow_growth: bool,
    kernels: Mapping[str, Kernel] | None = None,
) -> Plan:
    """Make a plan for a model that is captured already, and perhaps its kernels."""
    check_forms(forms, seen.sites)
    chosen, demanded = resolve(policy, seen.sites)
    kernels = kernels_of(seen) if kernels is None else kernels
    steps = []
    for site in seen.sites:
        offered, why_none, by_name = forms_for(forms, site)
        step: Change | Skip
        if site.obstacle:
            step = Skip(site, site.obstacle)
        elif not by_name and not chosen(site):
            step = Skip(site, f"left out by the policy {chosen}")
        else:
            found = _first_change(site, kernels[site.name], offered, allow_growth or by_name)
            step = found if isinstance(found, Change) else Skip(site, found or why_none)
        if isinstance(step, Skip) and (not demanded.isdisjoint(site.names) or (by_name and offered)):
            raise FormError(f"{site.name}: {step.reason}; it was asked for by name: leave that out to go on without")
        steps.append(step)
    return Plan(tuple(steps), seen.cost, str(seen.example))


def candidates(base: Plan, kernels: Mapping[str, Kernel], forms: Forms, allow_growth: bool) -> dict[str, list[Change]]:
    """Return every change that the forms could make to every site that `base`, made of the same forms, changes."""
    found: dict[str, list[Change]] = {}
    for name, step in base.changes.items():
        offered, _, by_name = forms_for(forms, step.site)
        tried = (change_of(step.site, kernels[name], form, allow_growth or by_name) for form in offered)
        changes = {change.form.label: change for change in tried if isinstance(change, Change)}
        found[name] = list(changes.values())
    return found


def forms_for(forms: Forms, site: Site) -> tuple[Sequence[Form], str, bool]:
    """Return the forms that a site may take, why there are none, and whether it is named exactly.

    Its exact name comes first, then the pattern with the most letters.
    """
    if not isinstance(forms, Mapping):
        return forms, "", False
    names = [name for name in forms if name in site.names]
    globs = sorted((glob for glob in forms if matches(site, glob)), key=lambda glob: -len(glob.replace("*", "")))
    key = next(iter([*names, *globs]), None)
    if key is None:
        return (), "no form is given for it", False
    form = forms[key]
    return ((), f"kept dense by hand ({key})", False) if form is None else ((form,), "", bool(names))


def check_forms(forms: Forms, sites: Sequence[Site]) -> None:
    """Check that there are forms, and that each of their names fits a conv."""
    expect(forms, (Form, Mapping, Sequence), "forms: expected a list of forms, or a dict of them by name", FormError)
    if isinstance(forms, Form) or not forms:
        found = f"{forms.label} is not a list" if isinstance(forms, Form) else "nothing is given"
        raise FormError(f"forms: {found}; pass a list of forms, for example [DepthwiseSeparable(rank=2)]")
    values = forms.values() if isinstance(forms, Mapping) else forms
    for value in values:
        if not isinstance(value, Form) and not (value is None and isinstance(forms, Mapping)):
            raise FormError(f"forms: {value!r} is not a form; pass for example DepthwiseSeparable(rank=2)")
    if isinstance(forms, Mapping):
        for glob in forms:
            if glob != "*":
                check_glob("forms", glob, sites)


class Kernel:
    """A conv's weight, read when it is first asked for, and what the forms tried so far computed about it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self._conv = conv
        self.known: Known = {}

    @cached_property
    def weight(self) -> Tensor:
        """Return the kernel; to read a parametrised one may change the model."""
        return self._conv.weight

    @cached_property
    def finite(self) -> bool:
        """Return whether no value is NaN or infinity; taken for granted on the meta device."""
        return self.weight.is_meta or bool(self.weight.isfinite().all())


def kernels_of(seen: Capture) -> dict[str, Kernel]:
    """Return the kernels of all convs, by every name they have."""
    named = seen.model.named_modules(remove_duplicate=False)
    return {name: Kernel(conv) for name, conv in named if isinstance(conv, nn.Conv2d)}


def _first_change(site: Site, kernel: Kernel, forms: Sequence[Form], allow_growth: bool) -> Change | str:
    reasons: dict[str, None] = {}
    for form in forms:
        found = change_of(site, kernel, form, allow_growth)
        if isinstance(found, Change):
            return found
        reasons[found] = None
    return "; ".join(reasons)


def change_of(site: Site, kernel: Kernel, form: Form, allow_growth: bool) -> Change | str:
    """Return the change that a form makes to a site, or why it makes none."""
    found = settle(site, kernel, form, allow_growth)
    if isinstance(found, str):
        return found
    return Change(site, found, found.lost(site.geometry, kernel.weight, kernel.known))


def settle(site: Site, kernel: Kernel, form: Form, allow_growth: bool) -> Form | str:
    """Return the form with its rank settled, or why the site does not take it."""
    if reason := form.check(site.geometry):
        return reason
    if not kernel.finite:
        return "its weight holds NaN or infinity"
    form = form.settle(site.geometry, kernel.weight, kernel.known)
    change = Change(site, form)
    if not allow_growth and (change.macs_after >= site.macs or change.params_after > site.params):
        macs = change.macs_after / max(1, site.macs)  # an example without images costs nothing
        params = change.params_after / site.params
        return f"{form.label} has {macs:.2f} of its MACs and {params:.2f} of its parameters"
    return form
