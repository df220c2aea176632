"""What hangs on the parameters of the original, handed over to the converted model: optimisers and moving averages.

The converted model is a copy, so an optimiser made for the original steps tensors that no longer train anything, and
a moving average goes on averaging them. Both go wrong without a word, hence these functions.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convsurgeon.base.errors import PlanError
from convsurgeon.conversion import Result
from convsurgeon.planning.surgery import rebuild

_Optimizer = TypeVar("_Optimizer", bound=Optimizer)
_Model = TypeVar("_Model", bound=nn.Module)


def stale_parameters(optimizer: Optimizer, result: Result) -> tuple[str, ...]:
    """Names of the parameters that an optimiser would step although the converted model does not have them.

    Those of the original go by their names there, others are called `group 0, 3`. Empty after `refit_optimizer`.
    """
    alive = {id(parameter) for parameter in result.model.parameters()}
    names = {id(parameter): name for name, parameter in result.original.named_parameters()}
    return tuple(
        names.get(id(parameter), f"group {index}, {place}")
        for index, group in enumerate(optimizer.param_groups)
        for place, parameter in enumerate(group["params"])
        if id(parameter) not in alive
    )


def refit_optimizer(optimizer: _Optimizer, result: Result) -> _Optimizer:
    """A copy of an optimiser of the original model that steps the converted one.

    Layers that were not rewritten keep their state, such as momentum. The new parameters of a rewritten conv join the
    group of its weight, and its bias that of its bias, without state. The optimiser that is passed is not changed;
    learning-rate schedulers hold on to it and must be made anew.

    Raises:
        PlanError: the optimiser steps a parameter that is not the original model's.
    """
    heirs = _heirs(result)
    names = {id(parameter): name for name, parameter in result.original.named_parameters()}
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(id(parameter) not in names for parameter in stepped):
        raise PlanError(
            "optimizer: it steps a parameter that is not in result.original; "
            "pass one made for the model that was converted, or make one for result.model"
        )
    same = {id(old): heirs[names[id(old)]][0] for old in stepped if names[id(old)] not in _rewritten(result)}
    fresh = copy.deepcopy(optimizer, {id(old): old for old in stepped} | same)
    for group in fresh.param_groups:
        inherited = [heirs[names[id(old)]] if id(old) in names else [old] for old in group["params"]]
        group["params"] = list({id(new): new for news in inherited for new in news}.values())
    for old in stepped:
        fresh.state.pop(old, None)
    return fresh


def refit_average(average: _Model, result: Result) -> _Model:
    """A copy of a moving average of the original model (a plain copy, or a wrapper that holds it as `module`).

    Layers that were not rewritten keep their averages. A rewritten conv starts anew from the converted model: its
    factors are only determined up to sign and scale, so averages of two factorisations would mean nothing.

    Raises:
        PlanError: the average is not one of the original model.
    """
    inner = average.module if isinstance(getattr(average, "module", None), nn.Module) else average
    assert isinstance(inner, nn.Module)
    fresh = rebuild(inner, result.plan)
    started = result.model.state_dict()
    changed = tuple(f"{name}." for change in result.changes.values() for name in change.site.names)
    with torch.no_grad():
        for name, value in fresh.state_dict().items():
            if name.startswith(changed) and isinstance(value, Tensor):
                value.copy_(started[name])
    return fresh if inner is average else copy.deepcopy(average, {id(inner): fresh})  # type: ignore[return-value]


def _rewritten(result: Result) -> set[str]:
    """Names of the original's parameters that the converted model has no longer."""
    return {
        f"{name}.{parameter}"
        for change in result.changes.values()
        for name in change.site.names
        for parameter in ("weight", "bias")
    }


def _heirs(result: Result) -> dict[str, list[Any]]:
    """Name of a parameter of the original -> what takes its place in the converted model."""
    rewritten = _rewritten(result)
    modules = dict(result.model.named_modules(remove_duplicate=False))
    news = dict(result.model.named_parameters(remove_duplicate=False))
    heirs = {}
    for name, _ in result.original.named_parameters(remove_duplicate=False):
        path, _, kind = name.rpartition(".")
        if name not in rewritten:
            heirs[name] = [news[name]]
            continue
        inside = modules[path].named_parameters()
        has_bias = f"{path}.bias" in rewritten and result.original.get_submodule(path).bias is not None
        heirs[name] = [new for key, new in inside if (key.endswith("bias") and has_bias) == (kind == "bias")]
    return heirs
