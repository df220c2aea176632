"""Rewrites that the small network of test_export does not reach."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from convsurgeon.deploy.export import OnnxFile, export_onnx

from .small import Branches

IMAGE = (1, 4, 8, 8)


def written(model: nn.Module, folder: Path, image: Tensor | None = None) -> tuple[OnnxFile, list[str]]:
    """Exports behind the parity gate; the operators that are left."""
    done = export_onnx(model, torch.randn(IMAGE) if image is None else image, folder / "model.onnx")
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
