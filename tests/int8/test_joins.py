"""Values far apart that meet at the end of a network: each keeps its own steps in int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.graph.load import load_model, load_weights
from convsurgeon.int8.feeds import make_feeds
from convsurgeon.int8.float_joins import find_float_joins
from convsurgeon.int8.module import Int8Module, as_int8
from convsurgeon.int8.target import Target
from convsurgeon.onnx.exporter import export_graph

IMAGES = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SCALE = torch.tensor([300.0] * 4 + [1.0] * 5)


class Detector(nn.Module):
    """A small head of the YOLO kind: four coordinates in pixels and five scores at every place."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU())
        self.boxes, self.scores, self.join = nn.Conv2d(24, 4, 1), nn.Conv2d(24, 5, 1), join

    def forward(self, x: Tensor) -> Tensor:
        found = self.body(x)
        return self.join(self.boxes(found), self.scores(found))


class Direct(nn.Module):
    """The same from one conv, whose own channels are far apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 9, 3, padding=1)
        with torch.no_grad():
            self.last.weight[:4] *= 300

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def _joined(boxes: Tensor, scores: Tensor) -> Tensor:
    return torch.cat([boxes.sigmoid() * 640, scores.sigmoid()], 1).flatten(2)


def _last_axis(boxes: Tensor, scores: Tensor) -> Tensor:
    return _joined(boxes, scores).transpose(1, 2)


def _scaled(boxes: Tensor, scores: Tensor) -> Tensor:
    return torch.cat([boxes, scores], 1) * SCALE.view(1, -1, 1, 1)


def _masked(boxes: Tensor, scores: Tensor) -> Tensor:
    return torch.cat([boxes, scores], 1) + -1e4 * (SCALE > 1).float().view(1, -1, 1, 1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "joined": lambda: Detector(_joined),
    "last axis": lambda: Detector(_last_axis),
    "scaled": lambda: Detector(_scaled),
    "masked": lambda: Detector(_masked),
    "one conv": Direct,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_beside_boxes_keep_their_values(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = NETWORKS[name]().eval()
    cs.onnx.export(net, IMAGES[:16], tmp_path / "net.onnx")
    made = cs.onnx.quantize(tmp_path / "net.onnx", tmp_path / "int8.onnx", IMAGES)
    assert any("joined there" in note for note in made.notes)
    rounded = as_int8(net, [cs.Example((IMAGES,))]) if name == "joined" else Int8Module(onnx.load(made.path), net)
    with torch.no_grad():
        wanted, found = net(IMAGES), rounded(IMAGES)
    axis = 2 if name == "last axis" else 1
    for channel in range(4, 9):
        exact, own = (one.select(axis, channel).double() for one in (wanted, found))
        assert len(own.unique()) > 40
        assert float((own - exact).square().mean()) < 0.01 * float(exact.var())


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Softmax(1), nn.Upsample(scale_factor=2)),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 1), nn.Sigmoid()),
    ],
    ids=["segments", "mask"],
)
def test_other_ends_are_rounded_as_before(net: nn.Module) -> None:
    graph = export_graph(net.eval(), IMAGES[:16])
    assert not find_float_joins(graph, make_feeds(graph, IMAGES), Target.onnxruntime())
    assert not find_float_joins(graph, [{"input": np.zeros((16, 3, 16, 16), np.float32)}], Target.onnxruntime())


def test_a_trained_classifier_is_rounded_as_before() -> None:
    net = load_model("examples/digits.py:digit_net").eval()
    load_weights(net, "examples/digits.safetensors")
    digits = torch.from_numpy(np.load("examples/digits_calibration.npy")[:64])
    graph = export_graph(net, digits[:16])
    assert not find_float_joins(graph, make_feeds(graph, digits), Target.onnxruntime())


def test_a_target_that_wants_all_gets_all() -> None:
    graph = export_graph(Direct().eval(), IMAGES[:16])
    assert not find_float_joins(graph, make_feeds(graph, IMAGES), Target.npu())
