"""Networks of 1-d convs: the same network in convs of one row, converted like any other."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.forms.as_conv import Conv1dAsConv
from convsurgeon.graph.neighbours import callers, neighbours
from convsurgeon.planning.layers_as_convs import with_convs


class Words(nn.Module):
    """Batch norms, a residual, a stride, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 12, 5, stride=2, padding=2)
        self.block = nn.Sequential(nn.Conv1d(12, 12, 9, padding=4, bias=False), nn.BatchNorm1d(12), nn.ReLU())
        self.twice = nn.Conv1d(12, 12, 3, padding="same")
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.block(x)
        x = self.twice(self.twice(x).relu()).relu()
        out: Tensor = self.head(x.mean(2))
        return out


def _words() -> Words:
    torch.manual_seed(0)
    model = Words()
    norm = model.block[1]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.momentum = None  # the mean over all that it has seen
    for _ in range(3):
        model(torch.randn(8, 2, 64))
    return model.eval()


def _run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(x)
    return out


@settings(max_examples=60, deadline=None)
@given(
    channels=st.sampled_from([(4, 6), (6, 4)]),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 3),
    padding=st.sampled_from([0, 1, 2, "valid"]),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    batched=st.booleans(),
)
def test_a_conv_of_one_row_computes_the_same(
    channels: tuple[int, int], kernel: int, stride: int, padding: int | str, dilation: int, groups: int, bias: bool,
    batched: bool,
) -> None:  # fmt: skip
    layer = nn.Conv1d(*channels, kernel, stride, padding, dilation, groups, bias).double()
    x = torch.randn(*((2,) if batched else ()), channels[0], 20, dtype=torch.float64)
    torch.testing.assert_close(_run(Conv1dAsConv(layer), x), _run(layer, x), rtol=1e-12, atol=1e-12)


def test_it_is_planned_fitted_rebuilt_and_exported_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model, images = _words(), torch.randn(80, 2, 64, generator=torch.Generator().manual_seed(1))
    before = copy.deepcopy(model.state_dict())
    forms = {"*": cs.CP(rank=6), "stem.conv": None}
    fitted, blind = (
        cs.convert(model, images[:1], forms=forms, calibration=source, progress=False) for source in (images, False)
    )
    assert set(fitted.changes) == {"block.0.conv", "twice.conv"}
    wanted = _run(model, images)
    lost = [float((_run(one.model, images) - wanted).square().mean()) for one in (fitted, blind)]
    assert lost[0] < 0.5 * lost[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fitted.plan.save(tmp_path / "plan.json")
    again = cs.rebuild(model, cs.Plan.load(tmp_path / "plan.json"))
    again.load_state_dict(fitted.model.state_dict())
    assert torch.equal(_run(again, images), _run(fitted.model, images))
    cs.onnx.export(fitted.model, images[:1], tmp_path / "model.onnx")  # parity holds, or nothing is written


def test_a_fit_sees_the_norm_behind_the_layer() -> None:
    made = with_convs(_words())

    seen = cs.capture(made, torch.zeros(1, 2, 64))
    node = next(node for node in seen.graph.graph.nodes if node.target == "block.0.conv")
    conv = made.get_submodule("block.0.conv")
    assert isinstance(conv, nn.Conv2d)
    found = neighbours(node, seen.graph, conv, callers(seen.graph.graph, seen.graph))
    assert found.norm == "block.1"
    assert found.activation is not None


def _hooked(model: Words) -> None:
    model.twice.register_forward_hook(lambda *_: None)


def _normed(model: Words) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.twice)


@pytest.mark.parametrize("change", [_hooked, _normed])
def test_a_layer_with_more_than_weights_stays_and_is_reported(change: object) -> None:
    model = _words()
    change(model)  # type: ignore[operator]
    result = cs.convert(model, torch.zeros(1, 2, 64), forms=[cs.CP(rank=4)], calibration=False, progress=False)
    assert "block.0.conv" in result.changes
    assert "twice" in {skip.name for skip in result.skipped}


def test_a_model_without_such_layers_comes_back_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert with_convs(model) is model
