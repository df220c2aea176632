"""Which nodes stay in float at the ends of a network that adds to an image, and what that is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.int8.float_ends import find_float_ends
from convsurgeon.int8.module import as_int8
from convsurgeon.int8.target import Target
from convsurgeon.int8.training import Exported, learn_rounded
from convsurgeon.onnx.exporter import export_graph
from tests.growing import convert_growing

SIZE = 16


def _conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class Restorer(nn.Module):
    """Adds what three convs make of an image to it."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first, self.middle, self.last = _conv(channels, 24), _conv(24, 24), _conv(24, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.middle(self.first(x).relu()).relu())


class Enlarger(nn.Module):
    """Convs on the small image, a shuffle, and the image enlarged by plain means."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = _conv(3, 24), _conv(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        plain = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
        return nn.functional.pixel_shuffle(self.last(self.first(x * 2 - 1).relu()), 2) + plain


class Masker(nn.Module):
    """A mask: the image is spread over 24 channels, and nothing of it is in what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = _conv(1, 24), _conv(24, 24), _conv(24, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.last(self.middle(self.first(x).relu() + x).relu()))


def _classifier() -> nn.Module:
    return nn.Sequential(_conv(3, 24), nn.ReLU(), _conv(24, 4), nn.AdaptiveAvgPool2d(1))


def _segmenter() -> nn.Module:
    return nn.Sequential(_conv(3, 24), nn.ReLU(), _conv(24, 21))


@pytest.mark.parametrize(
    ("model", "channels", "convs", "others"),
    [
        (Restorer(), 3, {"first", "last"}, {"Add"}),
        (Restorer(1), 1, {"first", "last"}, {"Add"}),
        (Enlarger(), 3, {"first", "last"}, {"Add", "Mul", "Sub", "Resize", "DepthToSpace"}),
        (Masker(), 1, set(), set()),
        (_classifier(), 3, set(), set()),
        (_segmenter(), 3, set(), set()),
    ],
    ids=["restorer", "of one channel", "enlarger", "masker", "classifier", "segmenter"],
)
def test_which_nodes_are_ends(model: nn.Module, channels: int, convs: set[str], others: set[str]) -> None:
    graph = export_graph(model.eval(), torch.randn(1, channels, SIZE, SIZE))
    found = find_float_ends(graph, Target())
    kinds = {node.name: node.op_type for node in graph.graph.node}
    assert {name for name in found if kinds[name] == "Conv"} == convs
    assert {kinds[name] for name in found} - {"Conv"} == others


@pytest.mark.parametrize("form", [cs.CP(rank=4), cs.DepthwiseSeparable(rank=2), cs.Blueprint(rank=2)], ids=str)
def test_a_rewritten_end_stays_in_float_as_a_whole(form: cs.Form) -> None:
    torch.manual_seed(0)
    example = torch.randn(1, 3, SIZE, SIZE)
    how: dict[str, Any] = {
        "forms": [form],
        "policy": cs.select.everything(),
        "calibration": False,
        "progress": False,
    }
    made = convert_growing(Restorer().eval(), example, **how)
    assert {"first", "middle", "last"} == set(made.changes)
    graph = export_graph(made.model, example)
    convs = {node.name for node in graph.graph.node if node.op_type == "Conv"}
    assert find_float_ends(graph, Target()) & convs == {name for name in convs if not name.startswith("middle")}


class Residual(nn.Module):
    """Pointwise convs around sums and concatenations of features, which are no part of the ends."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.joined, self.last = (
            _conv(3, 24),
            _conv(24, 24, 1),
            _conv(48, 24, 1),
            _conv(24, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x).relu()
        both = torch.cat((features, self.inner(features)), 1)
        return x + self.last(features + self.joined(both))


class Linear(nn.Module):
    """Three convs with nothing between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = _conv(3, 24), _conv(24, 24), _conv(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.last(self.middle(self.first(x)))


@pytest.mark.parametrize("model", [Linear(), Residual()], ids=["linear", "residual"])
def test_wide_convs_next_to_an_end_are_none(model: nn.Module) -> None:
    graph = export_graph(model.eval(), torch.randn(1, 3, SIZE, SIZE))
    convs = [node.name for node in graph.graph.node if node.op_type == "Conv"]
    assert find_float_ends(graph, Target()) & set(convs) == {convs[0], convs[-1]}


@pytest.mark.parametrize("seed", range(3))
def test_the_ends_in_float_lose_less(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(seed)
    model, images = Restorer().eval(), torch.rand(32, 3, SIZE, SIZE)
    with torch.no_grad():
        model.last.weight *= 0.05  # what is added is small, as in a restorer
        exact = model(images)
        kept = (as_int8(model, [cs.Example((images,))])(images) - exact).square().mean()
        monkeypatch.setattr("convsurgeon.int8.module.find_float_ends", lambda *_: frozenset())
        whole = (as_int8(model, [cs.Example((images,))])(images) - exact).square().mean()
    assert kept < 0.2 * whole


@pytest.mark.parametrize(("target", "left"), [(Target(), {"first", "last"}), (Target.npu(), set())])
def test_a_chip_rounds_everything(tmp_path: Path, target: Target, left: set[str]) -> None:
    torch.manual_seed(0)
    images = torch.rand(8, 3, SIZE, SIZE)
    cs.onnx.export(Restorer().eval(), images[:1], tmp_path / "float.onnx")
    made = cs.onnx.quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", images, target=target)
    assert {layer.name for layer in made.layers if layer.excluded} == left
    assert all(name in made.notes[0] for name in (*left, "add")) if left else made.notes[0].startswith("npu")
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert sum(kind == onnx.TensorProto.INT8 for name, kind in weights.items() if "weight" in name) >= 3 - len(left)
    assert ("first.weight" in weights) == bool(left)


def test_a_recovery_rounds_what_the_file_will() -> None:
    torch.manual_seed(0)
    model, images = Restorer().eval(), torch.rand(16, 3, SIZE, SIZE)
    example = cs.Example((images[:1],))
    learn_rounded(
        model, [cs.Example((images,))], Target(), Exported(find_float_ends(export_graph(model, example), Target()))
    )
    inputs: dict[str, Tensor] = {}
    for name in ("middle", "last"):
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    with torch.no_grad():
        model(images)
    assert len(np.unique(inputs["middle"])) <= 256
    assert len(np.unique(inputs["last"])) > 256
