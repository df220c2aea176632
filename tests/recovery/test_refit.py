"""Optimisers and moving averages of the original go on with the converted model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import convsurgeon as cs
from tests import nets

X = torch.randn(2, 3, 12, 12)
OPTIMISERS: dict[str, Any] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.01),
}


def _trained(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    """An optimiser with state; weights and biases in groups of their own."""
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    weights = [parameter for name, parameter in model.named_parameters() if not name.endswith("bias")]
    optimizer: torch.optim.Optimizer = OPTIMISERS[kind](
        [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    )
    model(X).square().sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_refitted_optimiser_steps_every_parameter_and_keeps_its_state(kind: str) -> None:
    model = nets.Plain()
    old = _trained(kind, model)
    result = cs.convert(model, X, forms=[cs.DepthwiseSeparable(rank=2)], calibration=False)
    before = copy.deepcopy(old.state_dict())
    new = cs.refit_optimizer(old, result)
    assert type(new) is type(old)
    assert cs.stale_parameters(new, result) == ()
    assert {id(p) for group in new.param_groups for p in group["params"]} == {id(p) for p in result.model.parameters()}
    assert [group["weight_decay"] for group in new.param_groups] == [0.1, 0.0]
    last = result.model.down.branches[0].pointwise
    assert any(parameter is last.bias for parameter in new.param_groups[1]["params"])
    for key, value in old.state[model.head.weight].items():
        kept = new.state[result.model.head.weight][key]
        assert torch.equal(torch.as_tensor(kept), torch.as_tensor(value))
        assert kept is not value
    assert last.weight not in new.state
    original, stepped = copy.deepcopy(model.state_dict()), copy.deepcopy(result.model.state_dict())
    result.model(X).square().sum().backward()
    new.step()
    assert all(not torch.equal(p, stepped[name]) for name, p in result.model.named_parameters())
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    assert str(before) == str(old.state_dict())


def test_an_optimiser_of_the_original_is_stale() -> None:
    model = nets.Plain()
    old = torch.optim.SGD([{"params": [model.body.weight, model.head.bias, nn.Parameter(torch.ones(1))]}])
    result = cs.convert(model, X, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False)
    assert cs.stale_parameters(old, result) == ("body.weight", "head.bias", "group 0, 2")
    with pytest.raises(cs.PlanError, match=r"it steps a parameter that is not in result.original"):
        cs.refit_optimizer(old, result)


def test_a_shared_conv_is_stepped_once() -> None:
    model = nets.Shared()
    result = cs.convert(model, X, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False)
    new = cs.refit_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), result)
    stepped = [id(parameter) for parameter in new.param_groups[0]["params"]]
    assert sorted(stepped) == sorted(id(parameter) for parameter in result.model.parameters())


@pytest.mark.parametrize("wrapped", [True, False])
def test_an_average_goes_on(wrapped: bool) -> None:
    model = nets.Plain()
    average = AveragedModel(model) if wrapped else copy.deepcopy(model)
    inner = average.module if wrapped else average
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.mul_(0.5)
    result = cs.convert(model, X, forms=[cs.DepthwiseSeparable(rank=2)], calibration=False)
    fresh = cs.refit_average(average, result)
    assert type(fresh) is type(average)
    held = fresh.module if wrapped else fresh
    assert held.state_dict().keys() == result.model.state_dict().keys()
    torch.testing.assert_close(held.head.weight, 0.5 * model.head.weight)
    started = result.model.body.branches[0].depthwise.weight
    assert torch.equal(held.body.branches[0].depthwise.weight, started)
    if wrapped:
        fresh.update_parameters(result.model)
    assert type(inner.body) is nn.Conv2d


def test_an_average_of_another_model_is_refused() -> None:
    result = cs.convert(nets.Plain(), X, forms=[cs.DepthwiseSeparable(rank=2)], calibration=False)
    with pytest.raises(cs.PlanError, match="is not in this model"):
        cs.refit_average(nn.Sequential(nn.Linear(2, 2)), result)
