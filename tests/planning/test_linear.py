"""Linear layers as 1x1 convs: the same network, whose linear layers are sites."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.forms.as_conv import LinearAsConv
from convsurgeon.graph.neighbours import callers, neighbours
from tests.growing import convert_growing

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """Linear layers on vectors, on tokens, and on maps with channels last, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.pixels = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16, bias=False))
        self.tokens = nn.Linear(16, 16)
        self.head = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.pixels(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.tokens(self.tokens(tokens).relu())
        out: Tensor = self.head(tokens.mean(1))
        return out


def _mixed() -> Mixed:
    torch.manual_seed(1)
    return Mixed().eval()


def _run(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(x)
    return out


def test_it_computes_the_same_and_leaves_the_model_as_it_was() -> None:
    model = _mixed().double()
    before, shape = copy.deepcopy(model.state_dict()), str(model)
    made = cs.linear_as_conv(model, X.double(), min_weights=1)
    assert str(model) == shape
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(made) is Mixed
    torch.testing.assert_close(_run(made, X.double()), _run(model, X.double()), rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_linear_layer_becomes_a_site_that_any_batch_runs_through() -> None:
    made = cs.linear_as_conv(_mixed(), X, min_weights=1)
    sites = {site.name: site for site in cs.capture(made, X).sites}
    assert set(sites) == {"stem", "pixels.0.conv", "pixels.2.conv", "tokens.conv", "head.0.conv", "head.3.conv"}
    assert not any(site.obstacle for site in sites.values())
    assert len(sites["tokens.conv"].calls) == 2
    assert sites["tokens.conv"].macs == 2 * 2 * 64 * 16 * 16
    assert _run(made, torch.randn(5, 3, 8, 8)).shape == (5, 5)


def test_modes_frozen_weights_and_dtypes_carry_over() -> None:
    model = _mixed().double().train()
    model.head[0].weight.requires_grad_(False)
    made = cs.linear_as_conv(model, X.double(), min_weights=1)
    assert all(module.training for module in made.modules())
    flags = {name: parameter.requires_grad for name, parameter in made.named_parameters()}
    assert [name for name, flag in flags.items() if not flag] == ["head.0.conv.weight"]
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", ["pixels.0", "tokens", "head.0"])
def test_full_rank_is_exact_and_a_small_rank_is_not(name: str) -> None:
    model = _mixed().double()
    made = cs.linear_as_conv(model, X.double(), name, min_weights=1)
    errors = []
    for rank in (16, 2):
        policy = cs.select.named(f"{name}.conv")
        result = convert_growing(made, X.double(), forms=[cs.LowRank(rank)], policy=policy, calibration=False)
        assert list(result.changes) == [f"{name}.conv"]
        errors.append(float((_run(result.model, X.double()) - _run(model, X.double())).abs().max()))
    assert errors[0] < 1e-9 < 1e-3 < errors[1]


def test_a_fit_sees_the_activation_behind_the_layer() -> None:
    made = cs.linear_as_conv(_mixed(), X, min_weights=1)
    seen = cs.capture(made, X)
    calls = callers(seen.graph.graph, seen.graph)
    behind = {
        str(node.target): neighbours(node, seen.graph, conv, calls).activation
        for node in seen.graph.graph.nodes
        if node.op == "call_module" and isinstance(conv := made.get_submodule(str(node.target)), nn.Conv2d)
    }
    kinds = {name: type(found.function) if found is not None else None for name, found in behind.items()}
    assert kinds["pixels.0.conv"] is nn.GELU
    assert kinds["head.0.conv"] is nn.ReLU
    assert kinds["pixels.2.conv"] == kinds["head.3.conv"] is None


def test_it_is_calibrated_planned_rebuilt_and_exported(tmp_path: Path) -> None:
    model, images = _mixed(), torch.randn(64, 3, 8, 8)
    made = cs.linear_as_conv(model, X, "head.*", min_weights=1)
    result = cs.convert(made, X, forms=[cs.LowRank(4)], policy=cs.select.named("head.0.conv"), calibration=images)
    blind = cs.convert(made, X, forms=[cs.LowRank(4)], policy=cs.select.named("head.0.conv"), calibration=False)
    wanted = _run(model, images)
    lost = [float((_run(one.model, images) - wanted).square().mean()) for one in (result, blind)]
    assert lost[0] < 0.7 * lost[1]
    result.plan.save(tmp_path / "plan.json")
    again = cs.rebuild(cs.linear_as_conv(_mixed(), X, "head.*", min_weights=1), cs.Plan.load(tmp_path / "plan.json"))
    again.load_state_dict(result.model.state_dict())
    assert torch.equal(_run(again), _run(result.model))
    cs.onnx.export(result.model, X, tmp_path / "model.onnx")
    assert cs.onnx.check_parity(result.model, X, tmp_path / "model.onnx").relative < 1e-5
    with pytest.raises(cs.errors.PlanError, match=r"head\.0 is a linear layer; pass linear_as_conv"):
        cs.rebuild(model, result.plan)


def test_a_layer_wider_than_its_images_are_many_is_fitted_in_the_space_of_their_rows() -> None:
    """Its covariance alone would take 1.6 GB."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(20_000, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    directions = torch.randn(6, 2, 100, 100)
    images = torch.einsum("nd,dchw->nchw", torch.randn(80, 6), directions)
    made = cs.linear_as_conv(wide, images[:1])
    options = {"forms": [cs.LowRank(8)], "policy": cs.select.everything(), "progress": False}
    fitted = cs.convert(made, images[:1], calibration=images[:64], **options)
    blind = cs.convert(made, images[:1], calibration=False, **options)
    wanted = _run(wide, images[64:])
    lost = [float((_run(one.model, images[64:]) - wanted).square().mean()) for one in (fitted, blind)]
    assert lost[0] < 0.05 * lost[1]  # six directions are within eight
    budgeted = cs.convert(
        made,
        images[:1],
        calibration=images[:64],
        goal=cs.Budget(params=0.5),
        policy=cs.select.everything(),
        progress=False,
    )
    assert budgeted.report.after.params <= 0.5 * budgeted.report.before.params


def test_a_budget_that_the_convs_cannot_keep_points_to_the_linear_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 64)).eval()
    with pytest.raises(cs.errors.BudgetError, match=r"linear layers hold 0\.90 of it: linear_as_conv opens them"):
        cs.convert(model, X, calibration=False, goal=cs.Budget(params=0.2))
    with pytest.raises(cs.errors.BudgetError, match=r"or a wider policy$"):
        cs.convert(model, X, calibration=False, goal=cs.Budget(macs=0.01))
    made = cs.linear_as_conv(model, X, min_weights=1)
    result = cs.convert(made, X, calibration=False, goal=cs.Budget(params=0.5), policy=cs.select.named("3.conv"))
    assert result.report.after.params <= 0.5 * result.report.before.params


def _tied(model: Mixed) -> None:
    model.twin = nn.Bilinear(16, 1, 16)
    model.twin.bias = model.tokens.bias


def _hooked(model: Mixed) -> None:
    model.tokens.register_forward_hook(lambda *_: None)


def _never_run(model: Mixed) -> None:
    model.spare = nn.Linear(16, 16)


class _Twice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _subclass(model: Mixed) -> None:
    model.tokens = _Twice(16, 16)


def _two_shapes(model: Mixed) -> None:
    model.head[0] = model.tokens = nn.Linear(16, 16)
    model.head[3] = nn.Linear(16, 5)


def _five_dimensions(model: Mixed) -> None:
    model.pixels[0] = nn.Sequential(nn.Unflatten(2, (4, 2)), nn.Linear(16, 32), nn.Flatten(2, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_tied, r"tokens is left alone: its weight is tied to another module's, a Bilinear"),
        (_hooked, r"tokens is left alone: it carries hooks"),
        (_never_run, r"spare is left alone: the example never reaches it"),
        (_subclass, r"tokens is left alone: _Twice is a subclass with its own behaviour"),
        (_two_shapes, r"tokens is left alone: it reads tensors of 2 and 3 dimensions"),
        (_five_dimensions, r"pixels\.0\.1 is left alone: it reads a tensor of 5 dimensions"),
    ],
)
def test_what_cannot_be_a_conv_is_left_alone_and_named(change: object, words: str) -> None:
    model = _mixed()
    change(model)  # type: ignore[operator]
    with pytest.warns(UserWarning, match=words):
        made = cs.linear_as_conv(model.eval(), X, min_weights=1)
    torch.testing.assert_close(_run(made), _run(model))
    assert any(isinstance(module, LinearAsConv) for module in made.modules())


class _Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.flatten(1)) + self.fc.weight.sum()
        return out


class _Looks(_Reads):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.flatten(1))
        return out if isinstance(self.fc, nn.Linear) else 2 * out


def test_bad_requests_are_one_line_that_says_what_to_do() -> None:
    model = _mixed()
    with pytest.raises(cs.select.PolicyError, match=r"no linear layer is named 'heads\.0'; did you mean head\.0"):
        cs.linear_as_conv(model, X, "heads.0")
    with pytest.raises(cs.errors.CaptureError, match=r"no layer is left of the 5 of \*, 0 of them of 65536 weights"):
        cs.linear_as_conv(model, X)
    with pytest.raises(cs.errors.CaptureError, match=r"Mixed does not run on an input of shape 1x4x8x8"):
        cs.linear_as_conv(model, torch.zeros(1, 4, 8, 8), min_weights=1)
    with pytest.raises(cs.errors.CaptureError, match=r"LinearAsConv has no weight"):
        cs.linear_as_conv(_Reads(), X, min_weights=1)
    with pytest.raises(cs.errors.CaptureError, match=r"gives something else with these layers as convs"):
        cs.linear_as_conv(_Looks(), X, min_weights=1)
    with pytest.raises(cs.errors.CaptureError, match=r"Sequential has no linear layer"):
        cs.linear_as_conv(nn.Sequential(nn.Conv2d(3, 4, 3)), X)
    with pytest.raises(cs.errors.CaptureError, match=r"DataParallel.*\.module"):
        cs.linear_as_conv(nn.DataParallel(model), X)
    with pytest.raises(cs.errors.CaptureError, match=r"takes a torch module"):
        cs.linear_as_conv("model.onnx", X)


def test_a_model_without_values_is_rewritten_too() -> None:
    with torch.device("meta"):
        model = Mixed()
    made = cs.linear_as_conv(model.eval(), X, min_weights=1)
    assert cs.plan(made, X, forms=[cs.LowRank(2)], policy=cs.select.named("head.0.conv")).changes
