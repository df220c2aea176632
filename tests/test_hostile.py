"""Models of the wild: each converts and computes the same, or is refused in one clear line, and is never changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convsurgeon as cs
from convsurgeon.fit.fidelity import fidelity
from convsurgeon.graph.outputs import outputs
from tests import hostile
from tests.growing import convert_growing
from tests.hostile import X
from tests.nets import Plain

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def _converted(model: nn.Module, x: Tensor = X) -> cs.Result:
    forms = [cs.DepthwiseSeparable(rank=cs.Energy(1.0))]
    return convert_growing(model, x, forms=forms, policy=cs.select.everything(), calibration=False)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _assert_same(model: nn.Module, result: cs.Result, x: Tensor = X) -> None:
    given = cs.Example.of(x)
    one, two = outputs(model, given), outputs(result.model, given)
    assert one
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", hostile.CONVERTIBLE)
def test_it_converts_and_computes_the_same(name: str) -> None:
    make, skipped = hostile.CONVERTIBLE[name]
    model = make().double()
    before, modes = _state(model), [module.training for module in model.modules()]
    result = _converted(model, X.double())
    assert {skip.name for skip in result.skipped} == set(skipped)
    for skip in result.skipped:
        assert skipped[skip.name] in skip.reason
    assert result.changes
    _assert_same(model, result, X.double())
    assert modes == [module.training for module in model.modules()]
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items() if value.layout is torch.strided)


@pytest.mark.parametrize("name", hostile.REFUSED)
def test_it_is_refused_in_one_line(name: str) -> None:
    make, message = hostile.REFUSED[name]
    with pytest.raises(cs.ConvSurgeonError, match=message) as caught:
        _converted(make())
    assert "\n" not in str(caught.value)


def test_a_quantised_linear_is_no_hindrance() -> None:
    model = torch.ao.quantization.quantize_dynamic(Plain().eval())
    result = _converted(model)
    assert set(result.changes) == {"stem", "body", "down"}
    assert fidelity(*(outputs(one, cs.Example.of(X)) for one in (model, result.model))).sqnr_db > 30


def test_observers_that_grow_their_buffers_are_put_back() -> None:
    model = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    model = torch.ao.quantization.fuse_modules(model.eval(), [["1", "2", "3"]]).train()
    model = torch.ao.quantization.prepare_qat(model)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    result = _converted(model)
    assert ["quantisation-aware" in skip.reason for skip in result.skipped] == [True]
    assert shapes == {name: value.shape for name, value in model.state_dict().items()}


def test_an_example_without_images_is_refused_or_planned() -> None:
    made = cs.plan(Plain(), X[:0], forms=[cs.DepthwiseSeparable(rank=1)])
    assert not made.changes
    assert all(skip.reason for skip in made.skipped)


def test_operators_of_aten_are_convs_too() -> None:
    class Operators(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.ops.aten.conv2d.default(x, self.stem.weight, self.stem.bias, [1, 1], [1, 1])
            return self.head(F.relu(self.down(self.body(x))).mean((2, 3)))

    result = _converted(Operators())
    assert set(result.changes) == {"body", "down"}
    assert {skip.name for skip in result.skipped} == {"stem", "stem.weight"}


def test_a_copy_that_runs_modules_of_the_original_does_not_change_them() -> None:
    class Bound(Plain):
        def __init__(self) -> None:
            super().__init__()
            norm = self.norm
            self.call = lambda x: norm(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.down(self.call(self.body(self.stem(x))))).mean((2, 3)))

    model = Bound().train()
    before = _state(model)
    _converted(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
