"""The nodes of a form compute what its module computes, padding of every kind included; they need no values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor, nn

from convsurgeon.base.errors import ExportError
from convsurgeon.onnxnet.form_nodes import TakenNames, form_nodes
from convsurgeon.onnxnet.padding import Padding
from convsurgeon.onnxnet.session import open_session


class Sum(nn.Module):
    """Two chains, the second without bias."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        chains = [
            nn.Sequential(nn.Conv2d(4, 4, (3, 1), groups=4, bias=False, **_tall(how)), nn.Conv2d(4, 6, 1, bias=b))
            for b in (True, False)
        ]
        self.chains = nn.ModuleList(chains)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.chains
        return two(x) + one(x)


def _tall(how: dict[str, Any]) -> dict[str, Any]:
    return how if "padding" not in how or isinstance(how["padding"], str) else {**how, "padding": (1, 0)}


def _nodes(module: nn.Module, opset: int = 20, **more: Any) -> tuple[list[NodeProto], dict[str, Tensor]]:
    conv = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    stored: dict[str, Tensor] = {}

    def put(name: str, tensor: Tensor) -> str:
        stored[name] = tensor
        return name

    taken = TakenNames({"conv"}, {"x", "w", "y"})
    return form_nodes(module, conv, prefix="site", names=taken, put=put, opset=opset, **more), stored


def _run(nodes: list[NodeProto], stored: dict[str, Tensor], x: Tensor) -> Tensor:
    ends = [helper.make_tensor_value_info(name, 1, [None] * 4) for name in "xy"]
    weights = [numpy_helper.from_array(tensor.detach().numpy(), name) for name, tensor in stored.items()]
    graph = helper.make_graph(nodes, "form", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    (found,) = open_session(model).run(None, {"x": x.numpy()})
    return torch.from_numpy(np.asarray(found))


@pytest.mark.parametrize("how", [{}, {"padding": 1}, {"padding": "same", "dilation": 2}, {"padding": 1, "stride": 2}])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_nodes_compute_what_the_module_computes(mode: str, how: dict[str, Any]) -> None:
    module, x = Sum(padding_mode=mode, **how), torch.randn(2, 4, 9, 8)
    nodes, stored = _nodes(module)
    torch.testing.assert_close(_run(nodes, stored, x), module(x).detach(), rtol=1e-5, atol=1e-5)
    pads = [node for node in nodes if node.op_type == "Pad"]
    assert len(pads) == (mode != "zeros" and bool(how))  # one for both chains


@pytest.mark.parametrize("rule", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_padding_of_the_conv_is_added(rule: str, biased: bool, known: bool) -> None:
    padding = Padding.of({"auto_pad": rule, "strides": [2, 2]}, (3, 3))
    module, x = nn.Sequential(nn.Conv2d(4, 4, 1, bias=biased), nn.Conv2d(4, 6, 3, 2)), torch.randn(1, 4, 8, 7)
    nodes, stored = _nodes(module, padding=padding, size=(8, 7) if known else None)
    torch.testing.assert_close(_run(nodes, stored, x), module(padding.add(x)).detach(), rtol=1e-5, atol=1e-5)
    assert [node.op_type for node in nodes].count("Pad") == biased


def test_weights_may_have_shapes_only() -> None:
    with torch.device("meta"):
        module = Sum(padding=1)
    nodes, stored = _nodes(module)
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
        f"site.{name}": tuple(tensor.shape) for name, tensor in module.named_parameters()
    }
    assert [node.op_type for node in nodes] == ["Conv"] * 4 + ["Add"]
    assert nodes[-1].output == ["y"]


def test_what_has_no_node_is_refused() -> None:
    with pytest.raises(ExportError, match="Softplus"):
        _nodes(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Softplus()))
    with pytest.raises(ExportError, match="Hardswish"):
        _nodes(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Hardswish()), opset=13)
