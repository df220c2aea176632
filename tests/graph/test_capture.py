"""Every conv is found, measured and, where it cannot be rewritten, given its reason; the model is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convsurgeon import Example, capture
from convsurgeon.base.errors import CaptureError
from convsurgeon.graph.capture import Capture
from convsurgeon.planning.select import stem
from tests import hostile, nets

X = torch.randn(2, 3, 12, 12)


def _reasons(seen: Capture) -> dict[str, str]:
    return {site.name: site.obstacle for site in seen.sites}


@pytest.mark.parametrize("name", nets.CONVERTIBLE)
def test_every_conv_module_is_a_site_and_macs_are_torchs(name: str) -> None:
    model = nets.CONVERTIBLE[name]().eval()
    seen = capture(model, X)
    found = {alias for site in seen.sites for alias in site.names}
    convs = {path for path, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd)}
    assert convs <= found
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(X)
    assert seen.cost.flops == counter.get_total_flops()
    linear = 2 * 32 * 4
    assert sum(site.macs for site in seen.sites) == seen.cost.macs - linear
    assert sum(site.share for site in seen.sites) == pytest.approx(1 - linear / seen.cost.macs)


def test_a_shared_conv_is_one_site_with_all_its_calls() -> None:
    site = next(site for site in capture(nets.Shared(), X).sites if site.name == "body")
    assert site.aliases == ("alias",)
    assert [call.output_shape for call in site.calls] == [(2, 16, 12, 12), (2, 16, 6, 6)]
    assert site.macs == 2 * 16 * 16 * 9 * (144 + 36)


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        (nets.Subclassed, "body", "Standardised is a subclass with its own behaviour"),
        (nets.Subclassed, "down", ""),
        (nets.Parametrised, "body", "its weight is parametrised; call torch.nn.utils.parametrize.remove"),
        (nets.Parametrised, "down", "its weight is parametrised"),
        (nets.Hooked, "body", "it carries hooks that would be lost"),
        (nets.Tied, "body", "its weight is tied to another conv's"),
        (nets.Tied, "twin", "its weight is tied to another conv's"),
        (nets.Functional, "body", "its weight is also read in the model's own forward"),
        (nets.Functional, "kernel", "called as F.conv2d in the model's own forward; make it an nn.Conv2d"),
        (nets.Unreached, "auxiliary", "the example never reaches it in eval mode"),
        (nets.PartlyBranching, "gates.0.conv", ""),
        (nets.Branching, "body", ""),
        (nets.OtherConvs, "line", "Conv1d: only Conv2d is rewritten"),
        (nets.OtherConvs, "cube", "Conv3d: only Conv2d is rewritten"),
        (nets.OtherConvs, "up", "ConvTranspose2d: only Conv2d is rewritten"),
        (nets.OtherConvs, "group", ""),
    ],
)
def test_obstacles_name_the_cause(kind: type[nn.Module], name: str, reason: str) -> None:
    example = torch.randn(1, 8, 6, 6) if kind is nets.OtherConvs else X
    found = _reasons(capture(kind(), example))[name]
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_old_weight_norm_is_recognised() -> None:
    model = nets.Plain()
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(model.body)
    assert _reasons(capture(model, X))["body"].startswith("its weight is computed by a hook")


def test_an_unregistered_conv_is_found_by_its_call() -> None:
    site = next(site for site in capture(nets.Listed(), X).sites if "unregistered" in site.obstacle)
    assert site.kind == "Conv2d"
    assert site.macs == 2 * 16 * 16 * 9 * 144


def test_untraceable_submodules_become_leaves_and_the_rest_is_traced() -> None:
    seen = capture(nets.PartlyBranching(), X)
    assert set(seen.opaque) == {"gates.0", "gates.1"}
    assert "TypeError" in seen.opaque["gates.0"] or "TraceError" in seen.opaque["gates.0"]
    assert {node.target for node in seen.graph.graph.nodes if node.op == "call_module"} >= {"stem", "body", "gates.0"}


def test_an_untraceable_model_is_one_leaf() -> None:
    assert set(capture(nets.Branching(), X).opaque) == {""}


@pytest.mark.parametrize(
    "example",
    [
        ((X,), {"scale": torch.ones(1)}),
        ((X,), {"scale": torch.ones(1), "mask": torch.ones(2, 4)}),
    ],
)
def test_keyword_inputs(example: tuple[tuple[torch.Tensor], dict[str, torch.Tensor]]) -> None:
    seen = capture(nets.KeywordInputs(), Example(*example))
    assert not seen.opaque
    assert all(site.calls for site in seen.sites)


def test_mapping_tuple_and_nested_dict_inputs() -> None:
    assert capture(nets.KeywordInputs(), {"x": X, "scale": torch.ones(1)}).sites[0].calls
    assert capture(nets.Plain(), (X,)).sites[0].calls
    assert capture(nets.DictInput(), ({"image": X},)).sites[0].calls


@pytest.mark.parametrize("name", nets.CONVERTIBLE)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(name: str, training: bool) -> None:
    model = nets.CONVERTIBLE[name]().train(training)
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    attributes = [{key: copy.copy(value) for key, value in vars(module).items()} for module in model.modules()]
    random = torch.get_rng_state()
    capture(model, X)
    assert torch.equal(random, torch.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for module, before in zip(model.modules(), attributes, strict=True):
        assert {key: str(value) for key, value in vars(module).items()} == {k: str(v) for k, v in before.items()}


def test_buffers_survive_a_run_on_real_values() -> None:
    class Counts(nets.Branching):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += len(x)
            return super().forward(x)

    model = Counts()
    capture(model, X)
    assert model.seen == 0


def test_peak_activation_of_a_chain_and_of_a_shortcut() -> None:
    chain = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 1, 1))
    x = torch.zeros(1, 1, 8, 8)
    assert capture(chain, x).cost.peak_activation_bytes == 4 * 64 * (1 + 4)

    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.two(self.one(x).relu())

    assert capture(Shortcut(), x).cost.peak_activation_bytes == 4 * 64 * (1 + 4 + 4)


def test_tied_parameters_are_counted_once() -> None:
    cost = capture(nets.Tied(), X).cost
    assert cost.params == sum(parameter.numel() for parameter in nets.Tied().parameters())
    assert cost.weight_bytes == 4 * cost.params


def _nested(depth: int) -> nn.Module:
    model: nn.Module = nn.Conv2d(3, 3, 1)
    for _ in range(depth):
        model = nn.Sequential(model)
    return model


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (nets.Plain(), torch.zeros(2, 5, 12, 12), "Plain does not run on an input of shape 2x5x12x12: RuntimeError"),
        (nets.Plain(), "image.png", "example: a str without any tensor"),
        (nets.Plain(), (), "example: a tuple without any tensor"),
        (nn.Sequential(nn.LazyConv2d(4, 3)), X, "0.weight is lazy and has no shape yet"),
        (nn.DataParallel(nets.Plain()), X, "wrapped in DataParallel; pass model.module"),
        (nets.Cyclic(), X, "one of its modules contains itself"),
        (len, X, "expected a torch.nn.Module.* got builtin_function_or_method"),
        (nets.Plain, X, "expected a torch.nn.Module.* got the class Plain"),
        (nets.Plain().state_dict(), X, "expected a torch.nn.Module.* got OrderedDict"),
        (nets.Plain(), X.to_sparse(), "example: it holds a sparse_coo tensor"),
        (
            nets.Plain(),
            torch.nested.as_nested_tensor(list(X), layout=torch.jagged),
            "example: it holds a nested tensor",
        ),
        (_nested(330), X[:, :, :4, :4], "RecursionError.*setrecursionlimit"),
    ],
    ids=[
        "shape",
        "text",
        "empty",
        "lazy",
        "parallel",
        "cyclic",
        "function",
        "class",
        "state",
        "sparse",
        "nested",
        "deep",
    ],
)
def test_what_cannot_be_captured_is_refused(model: nn.Module, example: object, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(model, example)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_model_is_refused() -> None:
    with pytest.raises(CaptureError, match="it is a TorchScript module, whose layers are compiled"):
        capture(torch.jit.trace(nets.Plain().eval(), X), X)


def test_a_compiled_model_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"compiled by torch.compile; pass model._orig_mod"):
        capture(torch.compile(nets.Plain(), backend="eager"), X)


def test_an_example_cut_from_a_larger_tensor_costs_what_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    images = torch.zeros(64, 3, 16, 16)
    assert capture(model, images[:1]).cost == capture(model, torch.zeros(1, 3, 16, 16)).cost


def test_modules_that_a_forward_makes_are_leaves_of_their_own() -> None:
    seen = capture(hostile.MakesModules(), X)
    assert not seen.opaque
    called = [str(node.target) for node in seen.graph.graph.nodes if node.op == "call_module"]
    assert called == ["stem", "body", "_unregistered0", "down", "head"]
    hidden = capture(nets.Listed(), X)
    assert not hidden.opaque
    assert [site.obstacle for site in hidden.sites if "unregistered" in site.name]


def test_modules_that_a_forward_makes_do_not_change_the_peak() -> None:
    class Pooled(hostile.Body):
        def run(self, x: torch.Tensor) -> torch.Tensor:
            return nn.AvgPool2d(2)(self.body(x))

    class Registered(hostile.Body):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AvgPool2d(2)

        def run(self, x: torch.Tensor) -> torch.Tensor:
            return self.pool(self.body(x))

    assert capture(Pooled(), X).cost == capture(Registered(), X).cost


def test_a_cache_beside_control_flow_hides_no_conv() -> None:
    model = hostile.Remembers()
    seen = capture(model, X)
    assert set(seen.opaque) == {""}
    assert all(site.calls for site in seen.sites)
    assert model.grid is None


class _TwoNets(nn.Module):
    """Two networks in a row: the first conv of the second sees few channels, but not the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
        self.second = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
        self.side = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x * 2)) + self.side(x)


class _Untraceable(_TwoNets):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > -1e9 else x


@pytest.mark.parametrize(("kind", "readers"), [(_TwoNets, {"first.0", "side"}), (_Untraceable, {"first.0"})])
def test_a_stem_is_a_conv_that_reads_the_input(kind: type[nn.Module], readers: set[str]) -> None:
    """All that reach the input through no other conv; where nothing is traced, the one that runs first."""
    sites = capture(kind().eval(), torch.rand(1, 3, 8, 8)).sites
    assert {site.name for site in sites if site.reads_input} == readers
    assert {site.name for site in sites if stem()(site)} == readers
