"""Carry out a plan on a copy of the model: `operate` and `rebuild`.

The result is of the original class, with modules swapped: a GraphModule would freeze `training` and lose methods. One
`copy.deepcopy` is told beforehand what each changed conv becomes, so that every reference follows, under aliases and in
plain lists too, and the dense weights are never copied. Then the copy is traced, and a site that does not run is put
back.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from convsurgeon.base.errors import CaptureError, PlanError, expect
from convsurgeon.base.normal import in_normal_mode
from convsurgeon.forms.form import Form
from convsurgeon.forms.geometry import Geometry, keeps_channels_last
from convsurgeon.graph.capture import capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.load import load_weights
from convsurgeon.graph.model_files import Model, open_model
from convsurgeon.graph.obstacles import check_module
from convsurgeon.graph.state import undisturbed
from convsurgeon.graph.trace import trace
from convsurgeon.onnxnet.network import OnnxNetwork
from convsurgeon.planning.layers_as_convs import with_convs, with_transposed
from convsurgeon.planning.plan import Change, Plan
from convsurgeon.planning.swap import swap_modules


@in_normal_mode
def operate(model: Model, plan: Plan, example: object = None) -> tuple[nn.Module, Plan]:
    """Carry out a plan on a copy of the model and make sure that every changed site runs.

    Returns:
        The converted model, and the plan as it was carried out: a site that turned out not to run is a skip in it.
    """
    model, example = open_model(model, example)
    inputs = Example.of(example)
    converted = _rebuild(model, plan)
    with undisturbed(model):  # a closure that the copy holds may still run modules of the original
        failed = _not_running(converted, plan, inputs)
    if failed is None:  # the copy does not even run: find out which sites it cannot do without
        capture(model, inputs)  # if the original does not either, this says so
        names = _culprits(model, plan, inputs, list(plan.changes))
        failed = dict.fromkeys(names, "the model reads more of it than its output; put back")
    if not failed:
        return converted, _with_losses(model, plan)
    return operate(model, plan.without(failed), inputs)


def _with_losses(model: nn.Module, plan: Plan) -> Plan:
    """Return the plan with the energy that every form drops, which a plan read from a file does not say."""
    steps = []
    for step in plan.steps:
        if isinstance(step, Change) and step.lost is None:
            conv = model.get_submodule(step.name)
            assert isinstance(conv, nn.Conv2d)
            step = dataclasses.replace(step, lost=step.form.lost(step.site.geometry, conv.weight))
        steps.append(step)
    return dataclasses.replace(plan, steps=tuple(steps))


@in_normal_mode
def rebuild(model: Model, plan: Plan, weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """Return the converted structure of a model, ready for `load_state_dict`; the model is not changed.

    Args:
        model: the original, or the path of the ONNX file that the plan was made for; `export(rebuilt, None, path)`
            writes what comes of that.
        plan: what becomes of its convs.
        weights: of the converted model, `weights.safetensors` of a bundle; not needed before `load_state_dict`.

    Raises:
        PlanError: the plan was made for another model.
        CaptureError: the model cannot be copied.
        LoadError: the weights are not those of the converted model, or the file is not an ONNX file.
    """
    expect(plan, Plan, "plan: expected a Plan (Plan.load reads a file)", PlanError)
    if not isinstance(model, nn.Module):
        sizes = [tuple(map(int, part.split("x"))) for part in plan.example.split(", ")] if plan.example else []
        model = open_model(
            model, tuple(torch.zeros(size, dtype=torch.float32, device="cpu") for size in sizes) or None
        )[0]
    converted = _rebuild(model, plan)
    if weights is not None:
        fill(converted, model, Path(weights))
    return converted


def fill(converted: nn.Module, original: nn.Module, weights: Path) -> None:
    """Load the weights of a bundle into the structure that was made from its original."""
    untouched = set(original.state_dict()) if isinstance(original, OnnxNetwork) else set()  # the file has those
    load_weights(converted, weights, untouched)


def _rebuild(model: nn.Module, plan: Plan) -> nn.Module:
    check_module(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    if any(_is_other_layer(modules, name) for name in plan.changes):
        model = with_convs(model)
    new = {id(conv): _replacement(conv, change.form) for change, conv in _convs(model, plan)}
    converted = with_transposed(swap_modules(model, new))
    for path, module in converted.named_modules():
        if hasattr(module, "save_pretrained") and any(not path or name.startswith(f"{path}.") for name in plan.changes):
            vars(module)["save_pretrained"] = MethodType(save_pretrained, module)
    return converted


def save_pretrained(module: Any, *args: Any, **how: Any) -> Any:
    """Save as the module's class does, of transformers or another package, and warn of what loading makes of it."""
    warnings.warn(
        f"{type(module).__name__}.from_pretrained does not know the plan and gives rewritten convs random weights; "
        "keep the plan (plan.save), and load with cs.rebuild(model, plan, 'model.safetensors')",
        stacklevel=2,
    )
    return type(module).save_pretrained(module, *args, **how)


def _is_other_layer(modules: Mapping[str, nn.Module], name: str) -> bool:
    """Return whether a plan's conv is in this model a layer that the plan knows as a conv; see `layers_as_convs`."""
    parent, _, last = name.rpartition(".")
    return last == "conv" and isinstance(modules.get(parent), nn.Conv1d | nn.ConvTranspose2d)


def _convs(model: nn.Module, plan: Plan) -> list[tuple[Change, nn.Conv2d]]:
    modules = dict(model.named_modules(remove_duplicate=False))
    found = []
    for name, change in plan.changes.items():
        conv = modules.get(name)
        if not isinstance(conv, nn.Conv2d):
            raise PlanError(f"plan: {name} {_instead(modules, name)}")
        if Geometry.of(conv) != change.site.geometry:
            raise PlanError(
                f"plan: {name} is {change.site.geometry} in the plan and {Geometry.of(conv)} in this model; plan again"
            )
        found.append((change, conv))
    return found


def _instead(modules: Mapping[str, nn.Module], name: str) -> str:
    """Return what a model has where the plan has a conv, and what to do."""
    found, layer = modules.get(name), name.removesuffix(".conv")
    if found is None and isinstance(modules.get(layer), nn.Linear):
        return f"is not in this model, whose {layer} is a linear layer; pass linear_as_conv(model, example, ...) of it"
    kind = "is not in this model" if found is None else f"is a {type(found).__name__} in this model"
    return f"{kind}; the plan was made for another one, plan again"


def _replacement(conv: nn.Conv2d, form: Form) -> nn.Module:
    """Return the module that takes a conv's place, with its mode, layout and gradient flags."""
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
    """Return the changed sites that the model does not execute, with a reason; None if it does not run at all."""
    with undisturbed(model):
        graph, opaque = trace(model, example)
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    if opaque:
        try:
            called = {name for site in capture(model, example).sites if site.calls for name in site.names}
        except CaptureError:
            return None
    # every prefix of every module that is called: a form may build modules of any depth
    reached = {prefix for name in called for prefix in itertools.accumulate(name.split("."), "{}.{}".format)}
    reason = "the forward does not run the module of this name; put back"
    return {name: reason for name, change in plan.changes.items() if reached.isdisjoint(change.site.names)}


def _culprits(model: nn.Module, plan: Plan, example: Example, names: list[str]) -> list[str]:
    """Return the changes among `names` with which the model does not run, by halving."""
    alone = plan.without({name: "" for name in plan.changes if name not in names})
    if not names or _not_running(_rebuild(model, alone), alone, example) is not None:
        return []
    if len(names) == 1:
        return names
    middle = len(names) // 2
    halves = names[:middle], names[middle:]
    return [name for half in halves for name in _culprits(model, plan, example, half)]
