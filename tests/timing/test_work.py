"""MACs counted on the file are those counted on the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.base.errors import LatencyError
from convsurgeon.int8.quantize import quantize
from convsurgeon.onnx.exporter import export
from convsurgeon.timing.node_macs import count_macs
from tests.bundle.bundles import images
from tests.onnx.small import conv_stack, net


class Odd(nn.Module):
    """Groups, stride, dilation, transposed convs, and matrix products of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 8, (3, 5), stride=2, groups=2, padding="valid")
        self.wide = nn.Conv2d(8, 6, 3, dilation=2, padding=2)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.wide(self.down(x)))
        return self.head(y.mean((2, 3))) @ torch.ones(3, 7) + (y @ y.transpose(2, 3)).sum()


@pytest.mark.parametrize("model", [Odd(), net()], ids=["odd", "net"])
def test_as_many_as_it_was_counts(model: nn.Module, tmp_path: Path) -> None:
    image = torch.randn(2, 4 if isinstance(model, Odd) else 3, 16, 17)
    file = export(model, image, tmp_path / "net.onnx")
    found = count_macs(file.path)
    assert found.macs == cs.capture(model, image).cost.macs > 0
    assert found.uncounted == ()
    assert found.macs == sum(found.by_node.values())


def test_quantised_and_dynamic_files(tmp_path: Path) -> None:
    file = export(net(), images(2), tmp_path / "net.onnx", dynamic="batch")
    small = quantize(file.path, tmp_path / "int8.onnx", images(), sqnr_db=5)
    one = cs.capture(net(), images(1)).cost.macs
    assert count_macs(file.path).macs == count_macs(small.path).macs == one
    assert count_macs(file.path, batch=5).macs == count_macs(file.path, sizes={"batch": 5}).macs == 5 * one


def _file(path: Path, kind: str, shapes: Mapping[str, list[int]], out: list[int]) -> Path:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)]
    graph = helper.make_graph([helper.make_node(kind, list(shapes), ["y"], "node")], "g", infos, made)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_what_is_not_known_is_named(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.onnx", "MatMul", {"a": [2, 3, 4], "b": [4, 5]}, [2, 3, 5])
    assert count_macs(path).by_node == {"node": 2 * 3 * 5 * 4}
    model = onnx.load(conv_stack(tmp_path / "b.onnx", 1))
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [4])  # a shape that only the input tells
    model.graph.input.append(shape)
    model.graph.node.insert(0, helper.make_node("Reshape", ["x", "shape"], ["x2"], "reshape"))
    model.graph.node[1].input[0] = "x2"
    onnx.save(model, tmp_path / "b.onnx")
    found = count_macs(tmp_path / "b.onnx")
    assert (found.macs, found.uncounted) == (0, ("conv0",))
    with pytest.raises(LatencyError, match=r"nowhere\.onnx: no such file"):
        count_macs(tmp_path / "nowhere.onnx")
