"""Transposed convs of files: sites as those of torch models are, and to the byte as they were where they stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.forms.as_conv import CutConvTranspose2d, TransposedAsConv
from convsurgeon.graph.model_files import open_model
from convsurgeon.onnxnet.network import OnnxNetwork
from convsurgeon.onnxnet.write import save_network
from convsurgeon.planning.layers_as_convs import capture_as_convs, with_convs, with_transposed
from convsurgeon.runtime.network_graph import build_graph, export_skeleton
from tests.onnxnet.files import Graph, feed_of, nothing_else_touched, run, saved

KINDS = (nn.ConvTranspose2d, CutConvTranspose2d)
EXACT = cs.DepthwiseSeparable(rank=cs.Energy(1.0))


def file_of(
    folder: Path, *, kernel: Sequence[int] = (3, 3), size: Sequence[int] = (4, 5), groups: int = 1, bias: bool = True,
    opset: int = 13, **attributes: Any,
) -> Path:  # fmt: skip
    """One transposed conv "up" of 4 to 6 channels."""
    graph = Graph(opset)
    inputs = ["x", graph.weight("up.weight", 4, 6 // groups, *kernel)]
    if bias:
        inputs.append(graph.weight("up.bias", 6, scale=0.1))
    graph.node("ConvTranspose", inputs, "y", "up", group=groups, **attributes)
    return saved(graph.model(inputs=[("x", [1, 4, *size])]), folder)


def opened(path: Path, example: object = None) -> OnnxNetwork:
    network, _ = open_model(path, example)
    assert isinstance(network, OnnxNetwork)
    return network


def in_form(network: OnnxNetwork) -> OnnxNetwork:
    """A copy with a form of full rank in every transposed conv."""
    wide = with_convs(network)
    for one in (module for module in wide.modules() if isinstance(module, TransposedAsConv)):
        conv = one.conv
        geometry = cs.Geometry.of(conv)
        form = EXACT.settle(geometry, conv.weight.detach())
        module = form.build(geometry, conv.weight.device, conv.weight.dtype)
        form.fill(module, geometry, conv.weight.detach(), None if conv.bias is None else conv.bias.detach())
        one.conv = module
    return wide


def is_same(found: Path, wanted: Path, feed: dict[str, Any], limit: float = 1e-5) -> bool:
    (one,), (two,) = run(found, feed), run(wanted, feed)
    return one.shape == two.shape and bool(np.abs(one - two).max() <= limit * (np.abs(two).max() + 1e-9))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kernel=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    stride=st.integers(2, 4),
    before=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    after=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    more=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    opset=st.sampled_from([7, 9, 10, 11, 13, 18]),
    size=st.tuples(st.integers(2, 6), st.integers(2, 6)),
)
def test_every_setting_is_a_site_or_stays(
    kernel: tuple[int, int], stride: int, before: tuple[int, int], after: tuple[int, int], more: tuple[int, int],
    groups: int, bias: bool, opset: int, size: tuple[int, int], tmp_path: Path,
) -> None:  # fmt: skip
    more = (min(more[0], stride - 1), min(more[1], stride - 1))
    axes = list(zip(size, kernel, before, after, more, strict=True))
    if any((side - 1) * stride - one - two + k + add < 1 for side, k, one, two, add in axes):
        return
    path = file_of(
        tmp_path, kernel=kernel, size=size, groups=groups, bias=bias, opset=opset, strides=[stride, stride],
        pads=[*before, *after], output_padding=list(more),
    )  # fmt: skip
    network = opened(path)
    wide = in_form(network)
    if wide is network:  # a kernel of which padding leaves out whole taps, or more at the end than torch can add
        assert any(
            one >= stride * math.ceil(k / stride) or two - add >= k or add + one - two >= stride
            for _, k, one, two, add in axes
        )
        return
    made = tmp_path / "made.onnx"
    save_network(wide, made)
    onnx.checker.check_model(str(made), full_check=True)
    assert "ConvTranspose" not in {node.op_type for node in onnx.load(made).graph.node}
    feed = feed_of(path, seed=1)
    assert is_same(made, path, feed)
    with torch.no_grad():
        x = torch.from_numpy(feed["x"])
        torch.testing.assert_close(wide(x), network(x), rtol=1e-4, atol=1e-4)
    again = with_transposed(with_convs(network))
    assert repr(again) == repr(network)
    assert all(torch.equal(one, two) for one, two in zip(again.parameters(), network.parameters(), strict=True))
    save_network(again, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize(
    "how",
    [
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID"},
        {"output_shape": [8, 10]},
        {"output_shape": [9, 10]},
        {"output_shape": [7, 9], "auto_pad": "SAME_UPPER"},
    ],
)
def test_padding_in_other_words(kernel: int, how: dict[str, Any], tmp_path: Path) -> None:
    path = file_of(tmp_path, kernel=(kernel, kernel), strides=[2, 2], **how)
    wide = in_form(opened(path))
    assert any(isinstance(module, TransposedAsConv) for module in wide.modules())
    save_network(wide, tmp_path / "made.onnx")
    assert is_same(tmp_path / "made.onnx", path, feed_of(path))


def test_an_output_of_one_size_stays_where_sizes_are_open(tmp_path: Path) -> None:
    graph = Graph(13)
    weight = graph.weight("w", 4, 6, 3, 3)
    graph.node("ConvTranspose", ["x", weight], "a", "fixed", strides=[2, 2], output_shape=[8, 10])
    graph.node("ConvTranspose", ["x", weight], "b", "free", strides=[2, 2], auto_pad="SAME_UPPER")
    graph.node("Add", ["a", "b"], "y", "sum")
    path = saved(graph.model(inputs=[("x", ["n", 4, "h", "w2"])]), tmp_path)
    seen = capture_as_convs(path, torch.randn(1, 4, 4, 5))
    reasons = {site.name: site.obstacle for site in seen.sites}
    assert "output_shape" in reasons["fixed"]
    assert not reasons["free.conv"]
    save_network(in_form(opened(path, torch.randn(1, 4, 4, 5))), tmp_path / "made.onnx")
    assert is_same(tmp_path / "made.onnx", path, {"x": np.random.default_rng(0).random((3, 4, 4, 5), np.float32)})


def odd() -> Graph:
    """Transposed convs that stay: of one step, of two different ones, of holes, in a branch, of one and three axes."""
    graph = Graph(13)
    graph.node("ConvTranspose", ["x", graph.weight("w1", 4, 4, 3, 3)], "a", "one step", pads=[1] * 4)
    graph.node("ConvTranspose", ["a", graph.weight("w2", 4, 4, 3, 3)], "b", "two steps", strides=[1, 2])
    graph.node("ConvTranspose", ["b", graph.weight("w3", 4, 4, 3, 3)], "c", "holes", strides=[2, 2], dilations=[2, 2])
    graph.node("Mul", [graph.weight("w4", 4, 4, 3, 3), "scale"], "made", "scaled")
    graph.node("ConvTranspose", ["c", "made"], "d", "computed", strides=[2, 2])
    graph.const("line", np.array([1, 4, -1], dtype=np.int64))
    graph.node("Reshape", ["d", "line"], "e", "flat")
    graph.node("ConvTranspose", ["e", graph.weight("w5", 4, 4, 3)], "f", "line", strides=[2])
    graph.node("ReduceMean", ["f"], "y", "mean", keepdims=1)
    return graph


def test_those_that_stay_are_told_with_a_reason(tmp_path: Path) -> None:
    path = saved(odd().model(inputs=[("x", [1, 4, 4, 5]), ("scale", [1])]), tmp_path)
    result = cs.convert(path, forms=[cs.CP(rank=2)], policy=cs.select.everything(), calibration=False, progress=False)
    reasons = {skip.name: skip.reason for skip in result.skipped}
    assert set(reasons) == {"one_step", "two_steps", "holes", "computed", "line"}
    assert all("ConvTranspose" in reasons[name] for name in ("one_step", "two_steps", "holes", "line"))
    assert "weight" in reasons["computed"]


class UNet(nn.Module):
    """Down twice and up twice; the second way up is not even."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 24, 3, 2, 1), nn.Conv2d(24, 32, 3, 2, 1)
        self.up1, self.up2 = nn.ConvTranspose2d(32, 24, 4, 2, 1), nn.ConvTranspose2d(24, 16, 3, 2, 1, 1)
        self.slopes, self.last = nn.PReLU(16), nn.Conv2d(16, 2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.a(x).relu()
        two = self.b(one).relu()
        three = self.c(two).relu()
        return self.last(self.slopes(self.up2((self.up1(three) + two).relu()) + one))  # type: ignore[no-any-return]


@pytest.fixture(name="unet")
def _unet() -> UNet:
    torch.manual_seed(0)
    return UNet().eval()


EXAMPLE = torch.linspace(-1, 1, 3 * 12 * 16).reshape(1, 3, 12, 16)
FORMS = {"b": cs.DepthwiseSeparable(rank=3), "up1.conv": cs.CP(rank=16), "up2.conv": cs.CP(rank=16)}


def exported(model: nn.Module, folder: Path, dynamo: bool = True) -> Path:
    path = folder / "exported.onnx"
    torch.onnx.export(model, (EXAMPLE,), path, dynamo=dynamo, external_data=False, verbose=False)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_same_plan_and_outputs_by_torch_and_by_file(dynamo: bool, unet: UNet, tmp_path: Path) -> None:
    path, images = exported(unet, tmp_path, dynamo), torch.randn(64, 3, 12, 16)
    how: dict[str, Any] = {"forms": FORMS, "calibration": images, "progress": False}
    by_torch, by_file = cs.convert(unet, EXAMPLE, **how), cs.convert(path, EXAMPLE, **how)
    assert by_torch.plan.to_dict()["layers"] == by_file.plan.to_dict()["layers"]
    before = [(one.report.before.macs, one.report.before.params) for one in (by_torch, by_file)]
    assert before[0] == before[1]
    assert by_torch.report.after.macs == by_file.report.after.macs
    wanted, found = by_torch.model(images), by_file.model(images)
    assert (wanted - found).abs().max() < 0.02 * wanted.std()
    by_file.model.load_state_dict(by_torch.model.state_dict(), strict=False)
    torch.testing.assert_close(by_file.model(images), wanted, rtol=1e-5, atol=1e-5)
    cs.onnx.export(by_file.model, EXAMPLE, tmp_path / "one.onnx")
    cs.onnx.export(by_torch.model, EXAMPLE, tmp_path / "two.onnx")
    (one,), (two,) = (run(tmp_path / name, feed_of(tmp_path / name)) for name in ("one.onnx", "two.onnx"))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_nothing_else_is_touched_and_a_bundle_gives_it_back(unet: UNet, tmp_path: Path) -> None:
    path = exported(unet, tmp_path)
    data = path.read_bytes()
    forms = {"up1.conv": cs.CP(rank=8)}
    result = cs.convert(path, forms=forms, calibration=torch.randn(64, 3, 12, 16), progress=False)
    assert list(result.changes) == ["up1.conv"]
    bundle = cs.export(result, tmp_path / "out", pairs=0, progress=False)
    assert bundle.original.path.read_bytes() == data == path.read_bytes()
    kinds = [node.op_type for node in onnx.load(bundle.converted.path).graph.node]
    assert (kinds.count("ConvTranspose"), kinds.count("DepthToSpace"), kinds.count("Slice")) == (1, 1, 1)
    assert isinstance(result.model, OnnxNetwork)
    nothing_else_touched(path, bundle.converted.path, set(result.model.file_conv("up1.conv").sizes))
    plan = cs.Plan.load(bundle.folder / "plan.json")
    again = cs.rebuild(bundle.folder / "original.onnx", plan, bundle.folder / "weights.safetensors")
    cs.onnx.export(again, None, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == bundle.converted.path.read_bytes()
    with torch.no_grad():
        torch.testing.assert_close(again(EXAMPLE), result.model(EXAMPLE), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")
def test_what_stays_dense_is_the_file(tmp_path: Path) -> None:
    path = file_of(tmp_path, strides=[2, 2], pads=[0, 0, 1, 1])
    seen = capture_as_convs(path, None)
    assert isinstance(seen.model.get_submodule("up"), TransposedAsConv)
    cs.onnx.export(seen.model, None, tmp_path / "made.onnx")
    assert (tmp_path / "made.onnx").read_bytes() == path.read_bytes()
    assert seen.cost == cs.capture(path).cost
    assert [(one.macs, one.params) for one in seen.sites] == [(one.macs, one.params) for one in cs.capture(path).sites]


@pytest.mark.parametrize("how", [{"pads": [0, 0, 1, 1]}, {"auto_pad": "SAME_UPPER"}, {"output_padding": [1, 1]}])
def test_networks_are_timed_with_the_nodes_that_will_be_written(how: dict[str, Any], tmp_path: Path) -> None:
    path = file_of(tmp_path, strides=[2, 2], **how)
    bare = export_skeleton(capture_as_convs(path, None), progress=False)
    (wanted,) = run(path, feed_of(path))
    for chosen, kind in (({}, "ConvTranspose"), ({"up.conv": cs.CP(rank=4)}, "DepthToSpace")):
        made = build_graph(bare, chosen)
        assert [node.op_type for node in made.model.graph.node].count(kind) == 1
        assert {fact.site for fact in made.nodes} == {"up.conv"}
        (tmp_path / "timed.onnx").write_bytes(made.model.SerializeToString())
        (found,) = run(tmp_path / "timed.onnx", feed_of(tmp_path / "timed.onnx"))
        assert found.shape == wanted.shape


def test_one_weight_of_two_nodes_is_one_site(tmp_path: Path) -> None:
    graph = Graph(13)
    weight = graph.weight("w", 4, 4, 4, 4)
    graph.node("ConvTranspose", ["x", weight], "a", "first", strides=[2, 2], pads=[1] * 4)
    graph.node("ConvTranspose", ["a", weight], "b", "again", strides=[2, 2], pads=[1] * 4)
    graph.node("Conv", ["b", weight], "y", "other", strides=[2, 2], pads=[1] * 4)
    path = saved(graph.model(), tmp_path)
    forms = {"first.conv": EXACT, "other": EXACT}
    result = cs.convert(path, forms=forms, calibration=False, progress=False)
    assert {name: len(change.site.calls) for name, change in result.changes.items()} == {"first.conv": 2, "other": 1}
    cs.onnx.export(result.model, None, tmp_path / "made.onnx")
    assert is_same(tmp_path / "made.onnx", path, feed_of(path))
