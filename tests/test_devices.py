"""Everything happens where the model is: with a second device that refuses the first, no work is done on the first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from tests.elsewhere import DEVICE, elsewhere, moved

pytestmark = [
    pytest.mark.filterwarnings("ignore:The calibration images"),  # noise is not what a norm of one batch holds
    pytest.mark.filterwarnings("ignore:at..frobenius_norm is deprecated"),  # torch's own, where no kernel is fused
]

X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A stride, a group, a shortcut, and an activation with slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.slopes = nn.PReLU(16)
        self.mix = nn.Conv2d(16, 24, 1)
        self.down = nn.Conv2d(24, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.slopes(x + self.body(x))
        return self.head(torch.relu(self.down(self.mix(x))).mean((2, 3)))


FEWER = {
    **{"distill.joint.EPOCHS": 1, "fit.site.SWEEPS": 1, "forms.cpfit.STEPS": 2, "forms.cpfit._LEAST_STEPS": 2},
    **{"calibration.synthetic._PASSES": 1, "calibration.synthetic._LEAST_PASSES": 1},
}
"""Steps of all that is done step by step."""


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation passes through Python here."""
    for name, value in FEWER.items():
        monkeypatch.setattr(f"convsurgeon.{name}", value)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made = Residual()
    with torch.no_grad():
        made(X)  # its batch norm has seen images
    return moved(made.eval())


WAYS: dict[str, dict[str, Any]] = {
    "fitted": {"forms": [cs.CP(rank=6), cs.DepthwiseSeparable(rank=1), cs.LowRank(rank=8)]},
    "fitted to images from here": {"forms": [cs.Blueprint(rank=1)], "calibration": X},
    "made up": {"forms": [cs.CP(rank=6)], "calibration": cs.Images(limit=24)},
    "a budget": {"goal": cs.Budget(macs=0.7)},
    "low rank": {"forms": [cs.CP(rank=8), cs.LowRank(rank=8)]},
    "weights alone": {"forms": [cs.DepthwiseSeparable(rank=1)], "calibration": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_is_converted_where_it_is(way: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsurgeon.conversion._Call._time_now", lambda *_: "")  # onnxruntime times on the CPU
    with elsewhere() as here:
        given = {"calibration": X.to(DEVICE), "policy": cs.select.everything(), "progress": False} | WAYS[way]
        result = cs.convert(model, X[:2].to(DEVICE), **given)
        assert result.changes
        assert {tensor.device for tensor in (*result.model.parameters(), *result.model.buffers())} == {DEVICE}
        assert result.model(X[:2].to(DEVICE)).device == DEVICE
    assert not here


@pytest.mark.parametrize("images", ["there", "here"])
def test_a_model_is_recovered_where_it_is(images: str, model: nn.Module) -> None:
    with elsewhere() as here:
        form = cs.DepthwiseSeparable(rank=1)
        result = cs.convert(model, X[:2].to(DEVICE), forms=[form], calibration=False, progress=False)
        given = X.to(DEVICE) if images == "there" else X
        recipe = cs.Recipe(epochs=1, transform=cs.Augment(shift=1))
        better = cs.recover(result, given, recipe=recipe, progress=False)
        assert {tensor.device for tensor in (*better.model.parameters(), *better.model.buffers())} == {DEVICE}
    assert not here


def test_the_second_device_is_strict(model: nn.Module) -> None:
    with elsewhere(), pytest.raises(RuntimeError, match=r"convolution.* are not on xla:0"):
        model(X)
