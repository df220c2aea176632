"""Rewrites that the small network of test_export does not reach."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from convsurgeon.onnx.exporter import OnnxFile, export
from convsurgeon.onnxnet import proto
from tests.onnx.small import Branches, conv_stack

IMAGE = (1, 4, 8, 8)


def written(model: nn.Module, folder: Path, image: Tensor | None = None) -> tuple[OnnxFile, list[str]]:
    """Exports behind the parity gate; the operators that are left."""
    done = export(model, torch.randn(IMAGE) if image is None else image, folder / "model.onnx")
    assert done.parity.relative < 1e-5
    return done, [node.op_type for node in onnx.load(done.path).graph.node]


class Function(nn.Module):
    def __init__(self, function: object, *modules: nn.Module) -> None:
        super().__init__()
        self.parts, self.function = nn.ModuleList(modules), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)  # type: ignore[operator, no-any-return]


def norm(channels: int = 4) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels, eps=0.1)
    for tensor in (made.weight, made.bias, made.running_mean):
        nn.init.normal_(tensor)  # type: ignore[arg-type]
    nn.init.uniform_(made.running_var, 0.5, 2)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("biases", [0, 1, 3])
def test_a_norm_behind_a_sum_of_three_convs(biases: int, tmp_path: Path) -> None:
    convs = [nn.Conv2d(4, 4, 3, padding=1, bias=index < biases) for index in range(3)]
    model = Function(lambda x, a, b, c, bn: bn(c(x) + (b(x) + a(x))), *convs, norm())
    assert written(model, tmp_path)[1] == ["Conv", "Conv", "Conv", "Add", "Add"]


def test_blueprint_order_and_a_norm(tmp_path: Path) -> None:
    conv = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 3, padding=1, groups=4))
    assert written(nn.Sequential(conv, norm()), tmp_path)[1] == ["Conv", "Conv"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, a, b, bn: bn(a(x) + b(x)) + a(x),  # a conv called twice
        lambda x, a, b, bn: bn(a(x) + x) + b(x),  # not only convs in the sum
        lambda x, a, b, bn: bn(y := a(x) + b(x)) + y,  # somebody else reads the sum
        lambda x, a, b, bn: bn(torch.relu(a(x)) + b(x)),
    ],
)
def test_a_norm_that_must_stay(function: object, tmp_path: Path) -> None:
    convs = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)]
    assert "BatchNormalization" in written(Function(function, *convs, norm()), tmp_path)[1]


def test_a_norm_that_is_the_output(tmp_path: Path) -> None:
    done, kinds = written(nn.Sequential(Branches(4), norm()), tmp_path)
    assert kinds == ["Conv"] * 4 + ["Add"]
    assert done.outputs[0][0] == "output"


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda x: x.mean((2, 3)), ["GlobalAveragePool", "Reshape"]),
        (lambda x: x.mean((-1, -2), keepdim=True), ["GlobalAveragePool"]),
        (lambda x: x.mean(1), ["ReduceMean"]),
        (lambda x: x.mean((1, 2, 3)), ["ReduceMean"]),
        (lambda x: x.mean(2, keepdim=True), ["ReduceMean"]),
        (lambda x: x[:, :, ::2, 1:], ["Slice"]),
        (lambda x: x[:, :, 1:, :][:, :, ::2, 2:], ["Slice", "Slice"]),
    ],
)
def test_pools_and_slices(function: object, kinds: list[str], tmp_path: Path) -> None:
    assert written(Function(function), tmp_path)[1] == kinds


def test_what_goes_through_unchanged(tmp_path: Path) -> None:
    """An output that is an input: Identity must stay, for a graph cannot do without."""
    assert written(nn.Identity(), tmp_path)[1] == ["Identity"]
    assert (tmp_path / "model.onnx").unlink() is None
    model = Function(lambda x, drop: drop(x.to(torch.float32)).contiguous() + 1, nn.Dropout())
    assert written(model, tmp_path)[1] == ["Add"]


def test_a_volume(tmp_path: Path) -> None:
    model = Function(lambda x, conv: conv(x).mean((2, 3, 4), keepdim=True), nn.Conv3d(2, 4, 3))
    assert written(model, tmp_path, torch.randn(1, 2, 5, 5, 5))[1] == ["Conv", "GlobalAveragePool"]


def test_a_bias_of_zeros_goes_and_another_stays(tmp_path: Path) -> None:
    silent, loud = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    nn.init.zeros_(silent.bias)  # type: ignore[arg-type]
    done, _ = written(nn.Sequential(silent, loud), tmp_path)
    assert [len(node.input) for node in onnx.load(done.path).graph.node] == [2, 3]


def test_equal_integers_are_one(tmp_path: Path) -> None:
    twins = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)]
    model = Function(lambda x, a, b: b(a(x)[:, :, 1::2])[:, :, 1::2], *twins)
    done, kinds = written(model, tmp_path)
    graph = onnx.load(done.path).graph
    assert kinds == ["Conv", "Slice", "Conv", "Slice"]
    assert list(graph.node[1].input[1:]) == list(graph.node[3].input[1:])
    names = {tensor.name for tensor in graph.initializer}
    assert {"parts.0.weight", "parts.1.weight", *graph.node[1].input[1:]} <= names


def test_nodes_are_sorted_and_otherwise_left_in_order(tmp_path: Path) -> None:
    model = onnx.load(conv_stack(tmp_path / "stack.onnx", 3))
    names = [node.name for node in model.graph.node]
    proto.sort_nodes(model.graph)
    assert [node.name for node in model.graph.node] == names
    shuffled = [model.graph.node[index] for index in (4, 1, 5, 0, 3, 2)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in shuffled]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    proto.sort_nodes(model.graph)
    assert [node.name for node in model.graph.node] == names
    onnx.checker.check_model(model, full_check=True)
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]  # a cycle is left for the checker to name
    proto.sort_nodes(model.graph)
    assert len(model.graph.node) == 6
