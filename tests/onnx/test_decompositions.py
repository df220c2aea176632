"""Operators are taken apart in the captured graph: the files are those that torch makes by running it again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx._internal.exporter import _decomp, _fx_passes

from convsurgeon.onnx import decompositions, torch_export
from convsurgeon.onnx.exporter import export_graph
from convsurgeon.onnxnet.session import open_session


class Net(nn.Module):
    """Two layers, and what is done with them."""

    def __init__(self, steps: Callable[[Tensor, nn.Module, nn.Module], Tensor]) -> None:
        super().__init__()
        self.steps, self.one = steps, nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.two = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x, self.one, self.two)


def _residual(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    y = F.relu_(one(x))
    z = two(y)
    z += y
    return F.relu(z, inplace=True)


def _classifier(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    y = F.dropout(F.hardtanh_(one(x), 0, 6), training=False)
    return F.adaptive_avg_pool2d(two(y), 1).flatten(1)


def _dropped(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    return F.relu_(F.dropout(two(one(x)), training=False, inplace=True))


def _read_before(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    y = one(x)
    return two(y) + F.relu_(y)  # two reads y before


def _read_after(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    y = one(x)
    F.relu_(y)
    return two(y)  # what was written into it


def _seen_from_elsewhere(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    y = one(x)
    part = y[:, 1:3]
    F.relu_(part)
    return two(y)


def _flat_from_elsewhere(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    y = one(x)
    F.relu_(y.flatten(1))
    return two(y)


def _the_input(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    y = x.clone()
    F.relu_(y)
    return two(one(y))


def _writes_beside(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    given = torch.ones(4), torch.zeros(4), torch.zeros(4), torch.ones(4)
    found: Tensor = torch.ops.aten._native_batch_norm_legit.default(two(one(x)), *given, False, 0.1, 1e-5)[0]
    return found


def _pooled(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    return F.adaptive_avg_pool2d(two(one(x)), 3)


def _channels_last(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    return F.adaptive_avg_pool2d(two(one(x)).permute(0, 2, 3, 1), 1).flatten(1)


IN_PLACE = [_residual, _classifier, _dropped, _read_after]
BY_TORCH = [_read_before, _seen_from_elsewhere, _flat_from_elsewhere, _the_input]
BY_TORCH += [_writes_beside, _pooled, _channels_last]


@pytest.mark.parametrize("steps", [*IN_PLACE, *BY_TORCH])
def test_files_are_the_same_and_right(steps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    by_torch: list[str] = []
    honest = _fx_passes.decompose_with_registry
    monkeypatch.setattr(
        _fx_passes, "decompose_with_registry", lambda *given: (by_torch.append("run"), honest(*given))[1]
    )
    net, x = Net(steps).eval(), torch.randn(2, 3, 8, 8)
    nn.init.uniform_(net.one[1].running_mean)
    quick = export_graph(net, x)
    assert bool(by_torch) == (steps in BY_TORCH)
    _same_as_torch(quick, net, x)
    monkeypatch.setattr(torch_export, "decomposed_in_place", nullcontext)
    assert export_graph(net, x).SerializeToString(deterministic=True) == quick.SerializeToString(deterministic=True)


def _same_as_torch(graph: ModelProto, net: nn.Module, x: Tensor) -> None:
    session = open_session(graph)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, net(x).numpy(), atol=1e-5)


def test_open_sizes_stay_open() -> None:
    net, x = Net(_classifier).eval(), torch.randn(2, 3, 8, 8)
    quick = torch_export._capture(net, torch_export.Example((x,), {}), 18, "batch")
    assert quick.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    _same_as_torch(quick, net, x)
    _same_as_torch(quick, net, torch.randn(5, 3, 8, 8))


def test_another_version_of_the_exporter_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_decomp, "get_onnx_implemented_overloads")
    before = _fx_passes.decompose_with_registry
    with decompositions.decomposed_in_place():
        assert _fx_passes.decompose_with_registry is before
