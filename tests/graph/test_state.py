"""Looking at a model leaves nothing behind: not in caches, not in plain objects, not in parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convsurgeon.graph.state import keep_state, undisturbed, written_parameters
from tests import hostile, nets
from tests.hostile import X


def test_caches_however_deep_are_as_they_were() -> None:
    model = hostile.Remembers()
    with undisturbed(model):
        model(X)
        assert model.grid is not None
    assert model.grid is None
    assert model.caches == {"deep": [{}]}
    assert model.holder.kept == {}
    assert model.holder.last is None


@pytest.mark.parametrize("kind", [hostile.WritesParameter, hostile.WritesData])
def test_parameters_keep_their_values_and_their_memory(kind: type[nn.Module]) -> None:
    model = kind()
    before = [(parameter.data_ptr(), parameter.detach().clone()) for parameter in model.parameters()]
    with undisturbed(model), undisturbed(model):
        model(X)
    for (pointer, value), parameter in zip(before, model.parameters(), strict=True):
        assert parameter.data_ptr() == pointer
        assert torch.equal(parameter, value)


def test_an_inner_block_puts_back_what_the_outer_one_found() -> None:
    model = nets.Plain()
    value = model.head.weight.detach().clone()
    with keep_state(model):
        model.head.weight.data.zero_()
        with undisturbed(model):
            pass
        assert torch.equal(model.head.weight, value)
        model.head.weight.data.fill_(1)
    assert torch.equal(model.head.weight, value)


def test_what_a_run_writes_to_is_named_even_if_it_writes_the_same() -> None:
    model = hostile.WritesData()
    model(X)
    assert set(written_parameters(model, lambda: model(X))) == {"down.weight", "head.weight"}
    assert written_parameters(nets.Plain(), lambda: None) == []
    plain = nets.Plain()
    assert written_parameters(plain, lambda: plain(X)) == []


def test_a_parameter_that_is_replaced_is_put_back() -> None:
    model = nets.Plain()
    held = model.head.weight

    def run() -> None:
        model.head.weight = nn.Parameter(torch.zeros_like(held))

    assert written_parameters(model, run) == ["head.weight"]
    assert model.head.weight is held
