"""Learning through rounding: it computes what the int8 file computes, and the parameters are left as they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.int8.module import as_int8
from convsurgeon.int8.target import Target
from convsurgeon.int8.training import Exported, as_exported, learn_rounded
from tests import nets
from tests.distill.test_recover import X, _converted, _done, _recover

SAMPLE = [cs.Example((X[:64],))]


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4)]
    model = nn.Sequential(*layers, nn.LeakyReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        model(X)
    return model.eval()


def _rounded(model: nn.Module, target: Target = Target.onnxruntime("vnni")) -> nn.Module:  # noqa: B008
    made = copy.deepcopy(model)
    learn_rounded(made, SAMPLE, target)
    return made


@pytest.mark.parametrize("seed", range(2))
def test_it_computes_what_the_int8_file_does(seed: int) -> None:
    model = _model(seed)
    with torch.no_grad():
        exact, rounded, file = (one(X) for one in (model, _rounded(model), as_int8(model, SAMPLE)))
    off = (file - exact).norm()
    assert (rounded - exact).norm() == pytest.approx(float(off), rel=1.0)
    assert (rounded - file).norm() < 1.2 * off  # two roundings of the same steps, not of the same neighbours


@pytest.mark.parametrize("form", [cs.CP(rank=8), cs.DepthwiseSeparable(rank=1)])
def test_uneven_channels_inside_a_chain_are_evened_out_as_in_the_file(form: cs.Form) -> None:
    result = cs.convert(nets.Plain(), X[:2], forms=[form], calibration=False, policy=cs.select.everything())
    model = result.model.eval()
    with torch.no_grad():
        for name in result.changes:
            first, *_, last = (part for part in model.get_submodule(name).modules() if isinstance(part, nn.Conv2d))
            uneven = torch.logspace(-2, 2, len(first.weight))
            first.weight *= uneven[:, None, None, None]
            last.weight /= uneven[None, :, None, None]
    exported = as_exported(model, SAMPLE, Target.onnxruntime())
    assert exported.scales
    convs = {name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)}
    assert exported.fitted == convs
    evened, rough = copy.deepcopy(model), copy.deepcopy(model)
    learn_rounded(evened, SAMPLE, Target.onnxruntime(), exported)
    learn_rounded(rough, SAMPLE, Target.onnxruntime())
    file = as_int8(model, SAMPLE)
    with torch.no_grad():
        wanted = model(X)
        off = [float((one(X) - wanted).norm()) for one in (file, evened, rough)]
    assert off[1] < 3 * off[0]
    assert off[2] > 5 * off[1]


def test_weights_that_the_exporter_fits_are_exact_and_others_are_not() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 120, 3, padding=1), nn.ReLU(), nn.Conv2d(120, 4, 3, padding=1), nn.ReLU()]  # 1080 inputs
    model = nn.Sequential(*layers, nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    exported = as_exported(model, SAMPLE, Target.onnxruntime())
    assert exported.fitted == {"0", "4"}
    learn_rounded(model, SAMPLE, Target.onnxruntime(), exported)
    rounded: dict[int, bool] = {}
    for place in (0, 2, 4):
        kept = model[place]._parameters["weight"]
        model[place].register_forward_pre_hook(
            lambda layer, _, place=place, kept=kept: rounded.update({place: not torch.equal(layer.weight, kept)})
        )
    model(X[:2])
    assert rounded == {0: False, 2: True, 4: False}


@pytest.mark.parametrize(("target", "levels"), [(Target(), 127), (Target(reduce_range=True), 64)])
def test_every_output_channel_has_its_own_levels(target: Target, levels: int) -> None:
    seen: dict[str, Tensor] = {}
    model = _rounded(_model(), target)
    conv = model[3]
    conv._conv_forward = lambda x, weight, _: seen.update(x=x, weight=weight) or torch.zeros(1, 16, 10, 10)
    model(X[:1])
    kept = conv.state_dict()["weight"]
    for row, exact in zip(seen["weight"].detach(), kept, strict=True):
        steps = row / (exact.abs().max() / levels)
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert float(steps.abs().max()) == pytest.approx(levels, abs=1e-3)
    assert len(seen["x"].unique()) <= 256
    assert (seen["x"] == 0).any()  # padding is made of it


def test_parameters_stay_and_gradients_reach_them() -> None:
    model = _model()
    rounded = _rounded(model)
    before = {name: value.clone() for name, value in rounded.state_dict().items()}
    rounded(X[:8]).square().sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(rounded.state_dict()) == list(model.state_dict())
    assert all(isinstance(layer.weight, nn.Parameter) for layer in rounded.modules() if hasattr(layer, "weight"))
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in rounded.parameters())


def test_a_forward_that_fails_leaves_the_parameter() -> None:
    rounded = _rounded(_model())
    with pytest.raises(RuntimeError, match="expected input"):
        rounded[0](X[:, :2])
    assert rounded[0].weight is rounded[0]._parameters["weight"]


def test_a_layer_that_is_never_called_or_reads_one_value_is_left() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    model.idle = nn.Linear(3, 3)
    model.forward = lambda x: model[1](model[0](x * 0))  # type: ignore[method-assign]
    learn_rounded(model, SAMPLE, Target())
    assert not model.idle._forward_hooks
    assert not model[0]._forward_hooks


def test_an_export_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not for export")

    assert as_exported(Failing(), SAMPLE, Target()) == Exported()
    assert "not for export" in caplog.text


def test_the_int8_file_gains() -> None:
    result = _converted(nets.Plain())
    better = _recover(result, epochs=8, lr=3e-3, precision="int8")
    assert better.precision == "int8"
    assert _done(better).after.error < 0.5 * _done(better).before.error
    with torch.no_grad():
        wanted = result.original(X)
        before, after = (float((as_int8(one.model, SAMPLE)(X) - wanted).norm()) for one in (result, better))
    assert after < 0.7 * before
