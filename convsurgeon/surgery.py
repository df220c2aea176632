"""The pass: plan, operate, rebuild, and convert, which is all of it.

The FX graph is where sites are found and checked; what the user gets back is the original class with those modules
swapped, because a GraphModule freezes `training` and loses methods. The swap is one `copy.deepcopy` of the model that
is told beforehand what each rewritten conv becomes: every reference follows, under aliases and in plain lists too, and
the dense weights are never copied. Afterwards the copy is traced again, and a site that does not run is put back.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convsurgeon.calibration import Calibration, read
from convsurgeon.capture import Capture, capture
from convsurgeon.errors import CaptureError, FormError, PlanError
from convsurgeon.example import Example
from convsurgeon.fidelity import Fidelity, fidelity, outputs
from convsurgeon.form import Energy, Form
from convsurgeon.forms import DepthwiseSeparable
from convsurgeon.geometry import Geometry, keeps_channels_last
from convsurgeon.plan import Change, Plan, Skip
from convsurgeon.policy import Policy, Predicate, as_policy, check_names, default_policy
from convsurgeon.reconstruct import reconstruct
from convsurgeon.report import Report, learnable_rows
from convsurgeon.site import Site
from convsurgeon.state import undisturbed
from convsurgeon.trace import trace

DEFAULT_FORMS: tuple[Form, ...] = (DepthwiseSeparable(rank=Energy(0.95)),)
"""What `convert` does when it is not told: separable, keeping 95 % of every kernel's energy.

On the CIFAR ResNet-20 that keeps the accuracy (91.6 -> 91.8 %) and 0.91 of the MACs; 90 % loses 8 points at 0.75."""

CALIBRATED_FORMS: tuple[Form, ...] = (DepthwiseSeparable(rank=3), DepthwiseSeparable(rank=2))
"""And where there is calibration data: on the CIFAR ResNet-20 about 90 % at 0.45 of the MACs."""


@dataclass(frozen=True)
class Result:
    """A conversion: the new model, what was done to it, and the original it came from."""

    model: nn.Module
    plan: Plan
    report: Report
    original: nn.Module
    example: Example

    def with_metric(self, name: str, before: float, after: float) -> Result:
        """The result with one more line in its report."""
        return dataclasses.replace(self, report=self.report.with_metric(name, before, after))

    @property
    def changes(self) -> dict[str, Change]:
        """Name -> form, rank, lost, parameters and MACs before and after."""
        return self.plan.changes

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """Every conv left alone, with the reason."""
        return self.plan.skipped


def plan(
    model: nn.Module,
    example: object,
    *,
    forms: Sequence[Form] = DEFAULT_FORMS,
    policy: Predicate | None = None,
    allow_growth: bool = False,
) -> Plan:
    """Decides for every conv which form it takes, or why it is left alone; touches nothing.

    Args:
        model: any module that runs on the example.
        example: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`.
        forms: candidates for every site; the first that fits, and makes the layer cheaper, is taken.
        policy: which sites may be touched; the default leaves the stem alone.
        allow_growth: take a form even where it has more MACs or parameters than the conv.

    Raises:
        CaptureError: the model does not run on the example.
        PolicyError: a name in the policy fits no conv.
        FormError: a layer demanded by its exact name cannot take any of the forms.
    """
    return _plan(capture(model, example), forms, policy, allow_growth)


def _plan(seen: Capture, forms: Sequence[Form], policy: Predicate | None, allow_growth: bool) -> Plan:
    if not forms:
        raise FormError("forms: the list is empty; pass at least one form, for example DepthwiseSeparable(rank=2)")
    chosen = default_policy() if policy is None else as_policy(policy)
    demanded = check_names(chosen, seen.sites)
    convs = dict(seen.model.named_modules(remove_duplicate=False))
    steps = []
    for site in seen.sites:
        step = _step(site, convs.get(site.name), forms, chosen, allow_growth)
        if isinstance(step, Skip) and not demanded.isdisjoint(site.names):
            raise FormError(
                f"{site.name}: {step.reason}; it was asked for by name: leave the name out to go on without"
            )
        steps.append(step)
    return Plan(tuple(steps), seen.cost, str(seen.example))


def _step(
    site: Site, conv: nn.Module | None, forms: Sequence[Form], policy: Policy, allow_growth: bool
) -> Change | Skip:
    """What becomes of one site."""
    if site.obstacle:
        return Skip(site, site.obstacle)
    if not policy(site):
        return Skip(site, f"left out by the policy {policy}")
    assert isinstance(conv, nn.Conv2d)
    reasons: list[str] = []
    for form in forms:
        found = _try(site, conv, form, allow_growth)
        if isinstance(found, Change):
            return found
        if found not in reasons:
            reasons.append(found)
    return Skip(site, "; ".join(reasons))


def _try(site: Site, conv: nn.Conv2d, form: Form, allow_growth: bool) -> Change | str:
    """The change that a form makes to a site, or why it makes none."""
    geometry = site.geometry
    if reason := form.check(geometry):
        return reason
    if not conv.weight.is_meta and not bool(conv.weight.isfinite().all()):
        return "its weight holds NaN or infinity"
    form = form.settle(geometry, conv.weight)
    macs = sum(site.images(call) * form.macs(geometry, site.size(call)) for call in site.calls)
    params = form.params(geometry)
    if not allow_growth and (macs >= site.macs or params > site.params):
        return f"{form.label} has {macs / site.macs:.2f} of its MACs and {params / site.params:.2f} of its parameters"
    return Change(site, form, form.lost(geometry, conv.weight), params, macs)


def operate(model: nn.Module, plan: Plan, example: object) -> tuple[nn.Module, Plan]:
    """Carries out a plan on a copy of the model and makes sure that every changed site runs.

    Returns:
        The converted model, and the plan as it was carried out: a site that turned out not to run is a skip in it.

    Raises:
        PlanError: the plan was made for another model.
        CaptureError: the model cannot be copied, or the copy does not run.
    """
    inputs = Example.of(example)
    converted = rebuild(model, plan)
    failed = _not_running(converted, plan, inputs)
    if failed is None:  # the copy does not even run: find out which sites it cannot do without
        capture(model, inputs)  # if the original does not either, this says so
        names = _culprits(model, plan, inputs, list(plan.changes))
        failed = dict.fromkeys(names, "the model reads more of it than its output; put back")
    if not failed:
        return converted, plan
    return operate(model, plan.without(failed), inputs)


def rebuild(model: nn.Module, plan: Plan) -> nn.Module:
    """The converted structure of a model, ready for `load_state_dict`; the model itself is not changed.

    Raises:
        PlanError: the plan was made for another model.
        CaptureError: the model cannot be copied.
    """
    new = {id(conv): _replacement(conv, change.form) for change, conv in _convs(model, plan)}
    try:
        converted = copy.deepcopy(model, dict(new))
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        raise CaptureError(
            f"model: {type(model).__name__} cannot be copied ({type(error).__name__}: {line}); "
            "copy.deepcopy(model) must work, and the model you pass is never changed in place"
        ) from error
    placed = {id(module) for module in converted.modules()}
    if any(id(module) not in placed for module in new.values()):
        kind = type(model).__name__
        raise CaptureError(f"model: {kind} copies itself in its own way (__deepcopy__, __reduce__); remove that first")
    return converted


def convert(
    model: nn.Module,
    example: object,
    *,
    forms: Sequence[Form] | None = None,
    policy: Predicate | None = None,
    allow_growth: bool = False,
    calibration: object = None,
    images: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Rewrites the convs of a pretrained model into lighter forms, keeping what it learned.

    The input model is unchanged to the bit; the result has its class, device, dtype, memory format and mode, and is
    trainable. See `plan` for the first arguments and the errors.

    Args:
        model: any module that runs on the example.
        example: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`.
        forms: candidates for every site; `DEFAULT_FORMS`, or `CALIBRATED_FORMS` with calibration, if not given.
        policy: which sites may be touched; the default leaves the stem alone.
        allow_growth: take a form even where it has more MACs or parameters than the conv.
        calibration: unlabelled images to fit the weights to: a tensor, an iterable of batches or a `DataLoader`.
            Without it the weights are the best approximation of the kernels, which at low rank is not enough.
        images: how many of them to use at most.
        seed: of the output positions that are drawn from them.
        progress: whether to show a bar over the layers while fitting.

    Raises:
        CalibrationError: the calibration data are empty, of another shape, or not finite.

    Returns:
        The converted model with its changes, skips, plan and report.
    """
    before = capture(model, example)
    data = None if calibration is None else read(calibration, before.example, images)
    chosen = forms if forms is not None else (DEFAULT_FORMS if data is None else CALIBRATED_FORMS)
    return _carry_out(before, _plan(before, chosen, policy, allow_growth), data, seed, progress)


def carry_out(
    model: nn.Module,
    plan: Plan,
    example: object,
    *,
    calibration: object = None,
    images: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """`convert` with a plan that is already made, or loaded from a file.

    Raises:
        PlanError: the plan was made for another model.
        CaptureError: the model does not run on the example, or cannot be copied.
    """
    before = capture(model, example)
    data = None if calibration is None else read(calibration, before.example, images)
    return _carry_out(before, plan, data, seed, progress)


def _carry_out(before: Capture, wanted: Plan, data: Calibration | None, seed: int, progress: bool) -> Result:
    model, example = before.model, before.example
    converted, done = operate(model, wanted, example)
    fits = () if data is None or not done.changes else (reconstruct(before, converted, done, data, seed, progress),)
    after = capture(converted, example)
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    shown = example if data is None else data.held_back[0]  # real images say more than a made-up example
    values = () if on_meta else _compared(outputs(model, shown), outputs(converted, shown))
    tensors = learnable_rows(model, converted)
    report = Report(before.cost, after.cost, done.steps, tensors, values, str(example), reconstruction=fits)
    return Result(converted, done, report, model, example)


def _compared(original: list[Tensor], converted: list[Tensor]) -> tuple[Fidelity, ...]:
    """Fidelity, or none where nothing can be compared: no float outputs, or sizes that depend on the values."""
    shapes = [[tensor.shape for tensor in outs] for outs in (original, converted)]
    if shapes[0] != shapes[1] or not sum(tensor.numel() for tensor in original):
        return ()
    return (fidelity(original, converted),)


def _convs(model: nn.Module, plan: Plan) -> list[tuple[Change, nn.Conv2d]]:
    """The module of every change, checked against the plan."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = []
    for name, change in plan.changes.items():
        conv = modules.get(name)
        if not isinstance(conv, nn.Conv2d):
            kind = "is not in this model" if conv is None else f"is a {type(conv).__name__} in this model"
            raise PlanError(f"plan: {name} {kind}; the plan was made for another one, plan again")
        if Geometry.of(conv) != change.site.geometry:
            raise PlanError(
                f"plan: {name} is {change.site.geometry} in the plan and {Geometry.of(conv)} in this model; plan again"
            )
        found.append((change, conv))
    return found


def _replacement(conv: nn.Conv2d, form: Form) -> nn.Module:
    """The module that takes a conv's place, with its mode, layout and gradient flags."""
    geometry = Geometry.of(conv)
    module = form.build(geometry, conv.weight.device, conv.weight.dtype)
    form.fill(module, geometry, conv.weight, conv.bias)
    if keeps_channels_last(conv.weight):
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    frozen_bias = conv.bias is not None and not conv.bias.requires_grad
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(
            not frozen_bias if name.endswith("bias") and conv.bias is not None else conv.weight.requires_grad
        )
    return module.train(conv.training)


def _not_running(model: nn.Module, plan: Plan, example: Example) -> dict[str, str] | None:
    """The changed sites that a converted model does not execute, with a reason; None if it does not run at all."""
    with undisturbed(model):
        traced = trace(model, example)
    called = {str(node.target) for node in traced.graph.graph.nodes if node.op == "call_module"}
    if traced.opaque:
        try:
            called = {name for site in capture(model, example).sites if site.calls for name in site.names}
        except CaptureError:
            return None
    # every prefix of every module that is called: a form may build modules of any depth
    reached = {target[:cut] for target in called for cut in _cuts(target)}
    reason = "the forward does not run the module of this name; put back"
    return {name: reason for name, change in plan.changes.items() if reached.isdisjoint(change.site.names)}


def _cuts(target: str) -> list[int]:
    """Where a dotted name can be cut, its end included."""
    return [index for index, letter in enumerate(target) if letter == "."] + [len(target)]


def _culprits(model: nn.Module, plan: Plan, example: Example, names: list[str]) -> list[str]:
    """The changes among `names` with which the model does not run, by halving."""
    return _halve(names, lambda some: _not_running(_only(model, plan, some), _subset(plan, some), example) is not None)


def _only(model: nn.Module, plan: Plan, names: Sequence[str]) -> nn.Module:
    return rebuild(model, _subset(plan, names))


def _subset(plan: Plan, names: Sequence[str]) -> Plan:
    return plan.without({name: "" for name in plan.changes if name not in set(names)})


def _halve(names: list[str], runs: Callable[[list[str]], bool]) -> list[str]:
    if not names or runs(names):
        return []
    if len(names) == 1:
        return names
    middle = len(names) // 2
    return _halve(names[:middle], runs) + _halve(names[middle:], runs)
