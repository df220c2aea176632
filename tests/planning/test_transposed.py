"""Strided transposed convs: the same as a conv and a pixel shuffle, and as they were where they stay dense."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings, strategies as st
from onnx import ModelProto
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.forms.as_conv import TransposedAsConv, transposed_obstacle
from convsurgeon.graph.capture import capture
from convsurgeon.planning.layers_as_convs import capture_as_convs, with_convs, with_transposed
from convsurgeon.runtime.network_graph import build_graph, export_skeleton


@settings(max_examples=150, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    stride=st.integers(2, 4),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    more=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
)
def test_a_conv_and_a_shuffle_compute_the_same(
    kernel: tuple[int, int], stride: int, padding: tuple[int, int], more: tuple[int, int], groups: int, bias: bool,
    size: tuple[int, int],
) -> None:  # fmt: skip
    more = (min(more[0], stride - 1), min(more[1], stride - 1))
    sides = zip(size, kernel, padding, more, strict=True)
    if any((side - 1) * stride - 2 * pad + k + add < 1 for side, k, pad, add in sides):
        return
    layer = nn.ConvTranspose2d(4, 6, kernel, stride, padding, more, groups, bias).double()
    if transposed_obstacle(layer):
        assert any(pad >= stride * -(-k // stride) for k, pad in zip(kernel, padding, strict=True))
        return
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    twin = TransposedAsConv(layer)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=1e-12)
    again = twin.as_it_was()
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), layer.parameters(), strict=True))
    assert repr(again) == repr(layer)


@pytest.mark.parametrize("how", [{"stride": 1}, {"stride": (2, 3)}, {"stride": 2, "dilation": 2}])
def test_others_stay(how: dict[str, int]) -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3, **how))
    assert with_convs(model) is model
    (site,) = capture_as_convs(model, torch.zeros(1, 3, 5, 5)).sites
    assert "ConvTranspose2d" in site.obstacle


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.up = nn.Conv2d(3, 16, 3, padding=1), nn.ConvTranspose2d(16, 16, 4, 2, 1)
        self.last = nn.ConvTranspose2d(16, 3, 3, 2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.a(x).relu()).relu())  # type: ignore[no-any-return]


@pytest.fixture(name="net")
def _net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


EXAMPLE = torch.linspace(-1, 1, 3 * 12 * 10).reshape(1, 3, 12, 10)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_what_is_converted_is_a_conv_and_what_is_not_is_as_it_was(net: Net, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    form = cs.DepthwiseSeparable(rank=4)  # of windows of 2x2: exact
    result = cs.convert(net, EXAMPLE, forms={"up.conv": form}, calibration=False, progress=False)
    assert list(result.changes) == ["up.conv"]
    assert isinstance(result.model.up, TransposedAsConv)
    assert isinstance(result.model.last, nn.ConvTranspose2d)
    with torch.no_grad():
        wanted, found = net(EXAMPLE), result.model(EXAMPLE)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.jit.script(result.model)(EXAMPLE), found)
    fresh = cs.rebuild(net, result.plan)
    fresh.load_state_dict(result.model.state_dict())
    assert torch.equal(fresh(EXAMPLE), found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    bundle = cs.export(result, tmp_path / "out", pairs=0, progress=False)
    assert _operators(bundle.original.path).count("ConvTranspose") == 2
    assert _operators(bundle.converted.path).count("ConvTranspose") == 1


def test_costs_are_those_of_the_layers_themselves(net: Net) -> None:
    own, seen = capture(net, EXAMPLE), capture_as_convs(net, EXAMPLE)
    assert seen.cost == own.cost
    assert [(one.macs, one.params, one.share) for one in seen.sites] == [
        (one.macs, one.params, one.share) for one in own.sites
    ]
    result = cs.convert(net, EXAMPLE, forms={"up.conv": cs.CP(rank=4)}, calibration=False, progress=False)
    assert result.report.after == capture(result.model, EXAMPLE).cost
    assert result.report.after.macs == result.report.before.macs + sum(
        change.macs_after - change.site.macs for change in result.changes.values()
    )


def test_networks_are_timed_with_transposed_convs_where_they_stay_dense(net: Net) -> None:
    seen = capture_as_convs(net, EXAMPLE)
    bare = export_skeleton(seen, progress=False)
    form = cs.CP(rank=4)
    dense, one = (build_graph(bare, chosen) for chosen in ({}, {"last.conv": form, "up.conv": form}))
    kinds = [[node.op_type for node in graph.model.graph.node] for graph in (dense, one)]
    assert (kinds[0].count("ConvTranspose"), kinds[0].count("DepthToSpace")) == (2, 0)
    assert (kinds[1].count("ConvTranspose"), kinds[1].count("DepthToSpace")) == (0, 2)
    assert {fact.site for fact in dense.nodes} >= {"last.conv", "up.conv"}
    session = ort.InferenceSession(one.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: EXAMPLE.numpy()})
    assert found.shape == net(EXAMPLE).shape


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_goes_there_and_back(layout: torch.memory_format, net: Net) -> None:
    before = net.to(memory_format=layout).state_dict()  # type: ignore[call-overload]
    after = with_transposed(with_convs(net)).state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert all(tensor.stride() == before[name].stride() for name, tensor in after.items())


def _operators(path: Path) -> list[str]:
    return [node.op_type for node in ModelProto.FromString(path.read_bytes()).graph.node]
