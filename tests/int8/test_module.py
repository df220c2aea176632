"""A model as its int8 file computes it, where a module is expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.graph.example import Example
from convsurgeon.int8.module import as_int8


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1)).eval()


def _images(count: int, size: int = 10) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_it_computes_what_the_file_does_on_any_number_of_images(tmp_path: Path) -> None:
    net, data = _net(), _images(16)
    rounded = as_int8(net, [Example((data,))])
    cs.onnx.export(net, data, tmp_path / "float.onnx")
    path = cs.onnx.quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", data).path
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"input": data.numpy()})[0]
    assert np.array_equal(rounded(data).numpy(), wanted)
    assert np.array_equal(rounded(data[:5]).numpy(), wanted[:5])
    assert rounded(torch.cat([data, data[:3]])).shape == (19, 4, 10, 10)
    assert next(rounded.parameters()) is next(net.parameters())  # what metrics ask for the device
    exact = net(data).detach()
    assert 0 < float((rounded(data) - exact).square().mean()) < 1e-3 * float(exact.square().mean())


def test_it_runs_on_images_of_other_sizes() -> None:
    rounded = as_int8(_net(), [Example((_images(8),))])
    larger = _images(2, 14)
    exact = _net()(larger).detach()
    assert float((rounded(larger) - exact).square().mean()) < 1e-2 * float(exact.square().mean())


def test_inputs_that_do_not_fit_are_one_line() -> None:
    rounded = as_int8(_net(), [Example((_images(4),))])
    with pytest.raises(cs.errors.ExportError, match=r"int8: the network cannot be run on these inputs: "):
        rounded(torch.zeros(2, 5, 10, 10))


class _Scaled(nn.Module):
    """Two inputs, one of which has no row per image, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        found = self.conv(x * scale)
        return {"features": found, "mean": found.mean((2, 3))}


def test_several_inputs_and_outputs() -> None:
    torch.manual_seed(0)
    net, scale = _Scaled().eval(), torch.tensor([2.0])
    rounded = as_int8(net, [Example((), {"scale": scale, "x": _images(8)})])
    exact = {name: value.detach() for name, value in net(_images(8)[:5], scale).items()}
    given = rounded(x=_images(8)[:5], scale=scale)
    assert given.keys() == exact.keys()  # what a metric asks for by name
    for wanted, found in zip(exact.values(), given.values(), strict=True):
        assert found.shape == wanted.shape
        assert float((found - wanted).square().mean()) < 1e-2 * float(wanted.square().mean())
