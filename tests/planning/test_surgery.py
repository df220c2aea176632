"""Laws 3, 4, 5, 6 and 7, and what convert promises besides."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import convsurgeon as cs
from convsurgeon.planning import surgery
from convsurgeon.planning.surgery import operate
from tests import nets
from tests.growing import convert_growing

X = torch.randn(2, 3, 12, 12)


def _full(model: nn.Module, **options: Any) -> cs.Result:
    """Every site at full rank, in a form that is exact there."""
    forms = [cs.DepthwiseSeparable(rank=cs.Energy(1.0))]
    x = X.to(next(model.parameters()).dtype)
    return convert_growing(model, x, forms=forms, policy=cs.select.everything(), calibration=False, **options)


def _run(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        out = model(x)
    return out.logits if isinstance(out, nets.Answer) else out


@pytest.mark.parametrize("name", nets.CONVERTIBLE)
def test_full_rank_conversion_computes_the_same(name: str) -> None:
    model = nets.CONVERTIBLE[name]().double().eval()
    for conv in getattr(model, "extra", ()):  # torch itself does not see into a plain list
        conv.double()
    result = _full(model)
    assert type(result.model) is type(model)
    torch.testing.assert_close(_run(result.model, X.double()), _run(model, X.double()), rtol=1e-9, atol=1e-10)
    assert result.changes


@pytest.mark.parametrize("name", nets.CONVERTIBLE)
def test_law_3_the_input_model_is_unchanged(name: str) -> None:
    model = nets.CONVERTIBLE[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    structure, modes = str(model), [module.training for module in model.modules()]
    cs.convert(model, X, forms=[cs.Blueprint(rank=1)], calibration=False)
    assert str(model) == structure
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", nets.CONVERTIBLE)
def test_law_4_every_conv_is_changed_or_skipped_with_a_reason(name: str) -> None:
    model = nets.CONVERTIBLE[name]()
    result = cs.convert(model, X, forms=[cs.DepthwiseSeparable(rank=2)], calibration=False)
    convs = {module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)}
    named = dict(model.named_modules())
    told = [named[step.name] for step in result.plan.steps if step.name in named]
    assert set(told) >= convs
    assert len(told) == len(set(told))
    assert all(skip.reason for skip in result.skipped)
    assert {skip.name for skip in result.skipped}.isdisjoint(result.changes)


@pytest.mark.parametrize("name", nets.CONVERTIBLE)
@pytest.mark.parametrize("form", [cs.DepthwiseSeparable(rank=2), cs.Blueprint(rank=2), cs.BlueprintSubspace(rank=1)])
def test_law_5_the_plan_predicts_the_counted_costs(name: str, form: cs.Form) -> None:
    result = cs.convert(nets.CONVERTIBLE[name](), X, forms=[form], policy=cs.select.everything(), calibration=False)
    assert result.report.after.params == result.plan.params_after
    assert result.report.after.macs == result.plan.macs_after
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(result.model).eval()(X)
    assert result.report.after.flops == counter.get_total_flops()


def test_law_6_a_shared_conv_is_replaced_once_and_stays_shared() -> None:
    model = nets.Shared()
    result = cs.convert(model, X, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False)
    assert result.model.body is result.model.alias
    change = result.changes["body"]
    assert change.site.aliases == ("alias",)
    assert change.macs_after == 2 * (16 * 9 + 256) * (144 + 36)
    assert sum(1 for step in result.plan.steps if step.name in ("body", "alias")) == 1


@pytest.mark.parametrize("name", nets.CONVERTIBLE)
def test_law_7_rebuild_and_load_gives_the_model_back(name: str, tmp_path: Any) -> None:
    kind = nets.CONVERTIBLE[name]
    result = cs.convert(kind(), X, forms=[cs.DepthwiseSeparable(rank=2)], calibration=False)
    result.plan.save(tmp_path / "plan.json")
    fresh = cs.rebuild(kind(), cs.Plan.load(tmp_path / "plan.json"))
    fresh.load_state_dict(result.model.state_dict())
    for (key, one), two in zip(fresh.state_dict().items(), result.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), key
    if name != "Listed":  # what hangs in a plain list is in no state dict
        assert torch.equal(_run(fresh.eval()), _run(result.model.eval()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_dtype_layout_mode_and_gradient_flags_carry_over(dtype: torch.dtype, layout: Any, training: bool) -> None:
    model = nets.Plain().to(dtype).to(memory_format=layout).train(training)
    model.down.weight.requires_grad_(False)
    result = cs.convert(model, X.to(dtype), forms=[cs.DepthwiseSeparable(rank=2)], calibration=False)
    assert all(parameter.dtype == dtype for parameter in result.model.parameters())
    assert all(module.training is training for module in result.model.modules())
    down = dict(result.model.down.named_parameters())
    assert {name: p.requires_grad for name, p in down.items()} == {name: name.endswith("bias") for name in down}
    assert all(parameter.requires_grad for parameter in result.model.body.parameters())
    depthwise = result.model.down.branches[0].depthwise.weight
    assert depthwise.is_contiguous(memory_format=layout)


def test_the_result_is_trainable() -> None:
    result = cs.convert(nets.Plain(), X, forms=[cs.DepthwiseSeparable(rank=2)], calibration=False)
    result.model.train()(X).sum().backward()
    assert all(parameter.grad is not None for parameter in result.model.parameters())


def test_rewriting_a_second_time_changes_nothing() -> None:
    once = cs.convert(nets.Plain(), X, forms=[cs.Blueprint(rank=1)], policy=cs.select.everything(), calibration=False)
    twice = cs.convert(once.model, X, forms=[cs.Blueprint(rank=1)], policy=cs.select.everything(), calibration=False)
    assert not twice.changes
    assert str(twice.model) == str(once.model)
    reasons = {skip.reason for skip in twice.skipped}
    assert reasons == {"already depthwise", "1x1 kernel: nothing to separate"}


def test_a_graph_module_and_a_meta_model_convert() -> None:
    graph = torch.fx.symbolic_trace(nets.Plain().eval())
    torch.testing.assert_close(_run(_full(graph).model), _run(graph), rtol=1e-4, atol=1e-5)
    with torch.device("meta"):
        model = nets.Plain()
    result = cs.convert(model, X, forms=[cs.DepthwiseSeparable(rank=2)], calibration=False)
    assert result.changes["body"].lost is None
    assert all(parameter.is_meta for parameter in result.model.parameters())
    assert not result.report.fidelity
    with pytest.raises(cs.errors.FormError, match="the rule reads weights, and this model is on the meta device"):
        cs.convert(model, X, forms=[cs.DepthwiseSeparable(rank=cs.Energy(0.9))], calibration=False)


class WantsConv(nets.Plain):
    """Needs `body` to be a conv."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.body, nn.Conv2d):
            raise TypeError("body must be a conv")
        return super().forward(x)


class Shadow(nets.Plain):
    """Calls a conv that is not the registered one."""

    def __init__(self) -> None:
        super().__init__()
        self.call: Callable[[Tensor], Tensor] = self.body.forward

    def forward(self, x: Tensor) -> Tensor:
        x = self.call(torch.relu(self.stem(x)))
        return self.head(torch.relu(self.down(self.body(x))).mean((2, 3)))


def test_a_site_the_model_cannot_do_without_is_put_back() -> None:
    model = WantsConv()
    result = cs.convert(
        model, X, forms=[cs.DepthwiseSeparable(rank=1)], policy=cs.select.everything(), calibration=False
    )
    assert type(result.model.body) is nn.Conv2d
    assert set(result.changes) == {"stem", "down"}
    assert "put back" in next(skip.reason for skip in result.skipped if skip.name == "body")


def test_a_bound_forward_never_runs_stale_weights() -> None:
    model = Shadow().eval()
    result = _full(model)
    torch.testing.assert_close(_run(result.model), _run(model), rtol=1e-3, atol=1e-4)


def test_a_site_that_no_longer_runs_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nets.Plain()
    made = cs.plan(model, X, forms=[cs.DepthwiseSeparable(rank=1)])
    original = surgery._rebuild

    def forgetful(model: nn.Module, plan: cs.Plan) -> nn.Module:
        converted = original(model, plan)
        if "down" in plan.changes:
            object.__setattr__(converted, "forward", lambda x: converted.body(converted.stem(x)).mean((2, 3)))
        return converted

    monkeypatch.setattr(surgery, "_rebuild", forgetful)
    converted, done = operate(model, made, X)
    assert set(done.changes) == {"body"}
    assert type(converted.down) is nn.Conv2d
    assert "put back" in next(skip.reason for skip in done.skipped if skip.name == "down")


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = nets.Plain()
    model.lock = __import__("threading").Lock()
    with pytest.raises(cs.errors.CaptureError, match=r"Plain cannot be copied .*pickle '_thread.lock'"):
        cs.convert(model, X, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False)


def test_a_demanded_layer_that_cannot_be_rewritten_is_an_error() -> None:
    with pytest.raises(
        cs.errors.FormError, match="body: it carries hooks that would be lost; remove them first; it was asked for"
    ):
        cs.convert(nets.Hooked(), X, policy=cs.select.named("body"), calibration=False)
    with pytest.raises(cs.errors.FormError, match=r"down: separable rank 9 has 1\.\d+ of its MACs"):
        cs.convert(
            nets.Plain(), X, forms=[cs.DepthwiseSeparable(rank=12)], policy=cs.select.named("down"), calibration=False
        )
    with pytest.raises(cs.select.PolicyError, match="no conv is named 'bode'; did you mean body"):
        cs.convert(nets.Plain(), X, policy=cs.select.named("bode"), calibration=False)


def test_a_layer_that_would_grow_is_left_alone_unless_told() -> None:
    forms = [cs.DepthwiseSeparable(rank=9)]
    shy = cs.convert(nets.Plain(), X, forms=forms, calibration=False)
    assert not shy.changes
    assert any("of its MACs" in skip.reason for skip in shy.skipped)
    assert set(convert_growing(nets.Plain(), X, forms=forms, calibration=False).changes) == {
        "body",
        "down",
    }


def test_the_first_form_that_fits_is_taken() -> None:
    forms = [cs.DepthwiseSeparable(rank=12), cs.Blueprint(rank=2), cs.DepthwiseSeparable(rank=1)]
    changes = cs.convert(nets.Plain(), X, forms=forms, calibration=False).changes
    assert changes["body"].form == cs.Blueprint(rank=2)
    assert changes["down"].form == cs.DepthwiseSeparable(rank=1)  # a blueprint would cost more before a stride


def test_the_default_leaves_the_stem() -> None:
    result = cs.convert(nets.Plain(), X, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False)
    assert set(result.changes) == {"body", "down"}
    assert result.skipped[0].reason == "left out by the policy ~stem()"


def test_a_plan_for_another_model_is_refused() -> None:
    made = cs.plan(nets.Plain(), X, forms=[cs.DepthwiseSeparable(rank=1)])
    with pytest.raises(cs.errors.PlanError, match="body is not in this model; the plan was made for another"):
        cs.rebuild(nn.Sequential(), made)
    other = nets.Plain()
    other.down = nn.Conv2d(16, 64, 3)
    with pytest.raises(cs.errors.PlanError, match="down is 16->32 3x3 /2 in the plan and 16->64 3x3 in this model"):
        cs.rebuild(other, made)


def test_a_plan_can_be_carried_out_later(tmp_path: Any) -> None:
    model = nets.Plain().eval()
    made = cs.plan(model, X, forms=[cs.DepthwiseSeparable(rank=2)])
    made.save(tmp_path / "plan.json")
    result = cs.convert(model, X, forms=cs.Plan.load(tmp_path / "plan.json"), calibration=False)
    direct = cs.convert(model, X, forms=[cs.DepthwiseSeparable(rank=2)], calibration=False)
    assert result.plan == made == direct.plan
    assert torch.equal(_run(result.model), _run(direct.model))


def test_grouped_convs_are_rewritten_group_by_group() -> None:
    model = nets.OtherConvs().double().eval()
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    for kind in (cs.DepthwiseSeparable, cs.Blueprint):
        forms = [kind(rank=cs.Energy(1.0))]
        result = convert_growing(model, x, forms=forms, policy=cs.select.everything(), calibration=False)
        assert set(result.changes) == {"group", "line.conv"}
        torch.testing.assert_close(_run(result.model, x), _run(model, x))


def test_random_init_builds_the_architecture_anew() -> None:
    form = cs.Blueprint(rank=1, init="random", norm="batch", activation="relu")
    result = cs.convert(nets.Plain(), X, forms=[form], calibration=False)
    assert result.changes["body"].lost is None
    assert isinstance(result.model.body.branches[0].pointwise_norm, nn.BatchNorm2d)
    assert all(parameter.isfinite().all() for parameter in result.model.parameters())


class CopiesItself(nets.Plain):
    def __deepcopy__(self, memo: dict[int, Any]) -> CopiesItself:
        fresh = CopiesItself()
        fresh.load_state_dict(self.state_dict())
        return fresh


class InPlace(nets.Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class ByKeyword(nets.Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.body(input=torch.relu(self.stem(x)))
        return self.head(torch.relu(self.down(x)).mean((2, 3)))


def test_a_model_with_its_own_deepcopy_is_refused_rather_than_left_dense() -> None:
    with pytest.raises(cs.errors.CaptureError, match="CopiesItself copies itself in its own way"):
        cs.convert(CopiesItself(), X, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False)


def test_a_forward_that_works_in_place_does_not_touch_the_example() -> None:
    x = X.clone()
    result = _full(InPlace().eval())
    cs.convert(InPlace(), x, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False)
    assert torch.equal(x, X)
    assert result.report.fidelity.sqnr_db > 100


def test_a_conv_called_by_keyword_is_rewritten() -> None:
    assert set(cs.convert(ByKeyword(), X, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False).changes) == {
        "body",
        "down",
    }


def test_capture_under_autocast_leaves_no_fake_tensor_behind() -> None:
    model = nets.Plain().eval()
    with torch.autocast("cpu", torch.bfloat16):
        cs.capture(model, X)
        assert type(model(X)) is Tensor


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda conv: conv.register_buffer("mask", torch.ones(1)), "holds buffers, parameters or modules of its own"),
        (lambda conv: nn.init.constant_(conv.weight, float("nan")), "holds NaN or infinity"),
        (lambda conv: setattr(conv, "in_channels", 8), "which is not what its attributes say"),
    ],
)
def test_convs_that_are_not_what_they_seem_are_skipped(change: Callable[[nn.Conv2d], object], reason: str) -> None:
    model = nets.Plain()
    change(model.body)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fidelity: the original's own output")
        result = cs.convert(model, X, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False)
    assert reason in next(skip.reason for skip in result.skipped if skip.name == "body")


def test_attributes_set_to_one_int_are_read_as_it_was_reads_them() -> None:
    model = nets.Plain().eval()
    model.down.stride = 1
    torch.testing.assert_close(_run(_full(model).model), _run(model), rtol=1e-4, atol=1e-5)


def test_a_bare_conv_is_refused() -> None:
    with pytest.raises(cs.errors.CaptureError, match=r"a bare Conv2d; wrap it in nn.Sequential"):
        cs.convert(nn.Conv2d(3, 8, 3), X, calibration=False)


class Chooses(nets.Plain):
    """How many outputs there are depends on their values."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out[out > out.mean()]


class Labels(nets.Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


@pytest.mark.parametrize("kind", [Chooses, Labels])
def test_fidelity_is_that_of_what_is_chosen_from(kind: type[nn.Module]) -> None:
    torch.manual_seed(1)
    result = cs.convert(kind(), torch.randn(64, 3, 12, 12), forms=[cs.DepthwiseSeparable(rank=1)], calibration=False)
    assert result.changes
    assert result.report.fidelity is not None
    assert result.report.fidelity.where
    assert result.report.fidelity.sqnr_db < 100


def test_a_forward_that_differentiates_is_converted() -> None:
    torch.manual_seed(0)
    model = nets.Gradient().eval()
    result = convert_growing(
        model,
        X,
        forms=[cs.DepthwiseSeparable(rank=9)],
        policy=cs.select.named("body", "down"),
        calibration=False,
    )
    assert set(result.changes) == {"body", "down"}
    torch.testing.assert_close(result.model(X), model(X), rtol=1e-3, atol=1e-4)


def test_a_network_of_no_numbers_agrees_with_nothing() -> None:
    model = nets.Plain()
    nn.init.constant_(model.head.weight, float("nan"))
    with pytest.warns(UserWarning, match="fidelity: the original's own output holds NaN or infinity"):
        result = cs.convert(model, X, forms=[cs.DepthwiseSeparable(rank=1)])
    found = result.report.fidelity
    assert math.isnan(found.sqnr_db)
    assert found.agreement is None
    assert result.report.to_json()
