from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from convsurgeon.base.errors import ExportError, ParityError, WriteError
from convsurgeon.int8.equalise import equalise
from convsurgeon.int8.quantize import convert_fp16, quantize
from convsurgeon.onnx.exporter import export
from tests.networks import _cifar, cifar_calibration, needs_data, normalise, pretrained
from tests.onnx.small import net

IMAGE = (1, 3, 12, 12)


class Plain(nn.Module):
    """Four convs, the third of which has one channel so loud that eight bits cannot hold the others."""

    def __init__(self, loud: float = 1.0) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1, bias=False) for i in range(4))
        with torch.no_grad():
            self.convs[2].weight[0] *= loud
            self.convs[3].weight[:, 0] /= loud

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.relu(conv(x))
        return x.mean([2, 3])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("quantize")
    return export(Plain(), torch.randn(IMAGE), folder / "plain.onnx", metadata={"plan": "abc"}).path


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("quantize")
    return export(Plain(300), torch.randn(IMAGE), folder / "loud.onnx").path


def images(count: int = 8) -> Tensor:
    return torch.randn(count, *IMAGE[1:], generator=torch.Generator().manual_seed(1))


def test_unsigned_activations_and_weights_per_channel(plain: Path, tmp_path: Path) -> None:
    done = quantize(plain, tmp_path / "int8.onnx", images())
    model = onnx.load(done.path)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version, model.producer_name) == (8, 18, "convsurgeon")
    assert [item.key for item in model.metadata_props] == ["inputs", "plan", "tool", "torch"]
    types = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert types[node.input[2]].data_type == TensorProto.UINT8
        if node.op_type == "DequantizeLinear" and node.input[0] == "convs.1.weight_quantized":
            assert list(types[node.input[1]].dims) == [16]
            assert types[node.input[2]].data_type == TensorProto.INT8
    assert done.size_bytes == done.path.stat().st_size
    assert done.sqnr_db > 25
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


def test_every_layer_has_a_figure(plain: Path, tmp_path: Path) -> None:
    done = quantize(plain, tmp_path / "int8.onnx", images())
    assert [layer.name for layer in done.layers] == [f"convs.{index}" for index in range(4)]
    assert all(20 < layer.sqnr_db < 60 for layer in done.layers)
    assert "error added" in str(done)


@pytest.fixture
def uneven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels are left as uneven as they are."""
    monkeypatch.setattr("convsurgeon.int8.pipeline.equalise", lambda *_: {})


@pytest.mark.usefixtures("uneven")
def test_a_bad_layer_is_named_and_can_be_left_out(loud: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sqnr_db": -100}
    done = quantize(loud, tmp_path / "a.onnx", images(), **options)
    assert done.worst[0].name in ("convs.2", "convs.3")  # where the loud channel is made, and where it is silenced
    better = quantize(loud, tmp_path / "b.onnx", images(), exclude_worst=2, **options)
    assert {layer.name for layer in better.layers if layer.excluded} == {"convs.2", "convs.3"}
    assert better.sqnr_db > done.sqnr_db + 10
    by_hand = quantize(loud, tmp_path / "c.onnx", images(), exclude=["convs.2", "convs.3"], **options)
    assert by_hand.path.read_bytes() == better.path.read_bytes()


def test_equalised_channels_need_no_exclusion(loud: Path, tmp_path: Path) -> None:
    assert quantize(loud, tmp_path / "int8.onnx", images()).sqnr_db > 25


@pytest.mark.parametrize("source", ["plain", "loud", "net"])
def test_equalising_changes_no_function(source: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    if source == "net":
        export(net(), torch.randn(IMAGE), path)
    else:
        path = request.getfixturevalue(source)
    model = onnx.load(path)
    feeds = [{"x": image[None].numpy()} for image in images()]
    assert len(equalise(model, feeds)) == 3  # in the net: two depthwise convs, and the ReLU before conv2
    sessions = [
        ort.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"])
        for one in (onnx.load(path), model)
    ]
    wanted, got = (session.run(None, feeds[0])[0] for session in sessions)
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()
    kernels = [{tensor.name: tensor.raw_data for tensor in one.graph.initializer} for one in (onnx.load(path), model)]
    assert kernels[0] != kernels[1]


@pytest.mark.usefixtures("uneven")
def test_too_far_off_is_not_written(loud: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"int8.onnx: not written, int8 loses too much: .* worst layer convs\.[23]"):
        quantize(loud, tmp_path / "int8.onnx", images(), sqnr_db=30)
    with pytest.raises(ParityError, match=r"fp16 loses too much: .* 200$"):
        convert_fp16(loud, tmp_path / "fp16.onnx", images(), sqnr_db=200)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("calibrator", ["minmax", "percentile"])
def test_calibrators_and_kinds_of_inputs(
    plain: Path, tmp_path: Path, calibrator: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    data = images()
    kinds = (data, data.numpy(), [data[:4], data[4:]], [{"x": data.numpy()}])
    files = [
        quantize(plain, tmp_path / f"{index}.onnx", kind, calibrator=calibrator).path.read_bytes()
        for index, kind in enumerate(kinds)
    ]
    assert len({*files}) == 1
    assert capfd.readouterr() == ("", "")


def test_half_precision(plain: Path, tmp_path: Path) -> None:
    done = convert_fp16(plain, tmp_path / "fp16.onnx", images())
    onnx.checker.check_model(onnx.load(done.path), full_check=True)
    assert done.size_bytes < 0.65 * plain.stat().st_size
    assert done.sqnr_db > 55
    assert done.agreement == 1
    session = ort.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(float)"


def test_a_residual_network_with_branches(tmp_path: Path) -> None:
    source = export(net(), torch.randn(IMAGE), tmp_path / "net.onnx", dynamic="batch").path
    done = quantize(source, tmp_path / "int8.onnx", images(40), sqnr_db=5)
    assert "layer1.0.conv1.branches.1.depthwise" in {layer.name for layer in done.layers}
    assert done.agreement > 0.7


def test_an_interrupt_leaves_nothing(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("convsurgeon.int8.quantize.measure_agreement", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize(plain, tmp_path / "small.onnx", [images()])
    assert not list(tmp_path.iterdir())


def test_refusals(plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    with pytest.raises(ExportError, match=r"calibration: does not fill one batch of x \[1, 3, 12, 12\]"):
        quantize(plain, target, [])
    with pytest.raises(ExportError, match=r"calibration: does not fill one batch"):
        quantize(plain, target, [{"y": images()}])
    with pytest.raises(ExportError, match=r"no node is called 'conv9'"):
        quantize(plain, target, images(), exclude=["conv9"])
    with pytest.raises(ExportError, match=r"calibrator 'best': choose one of minmax, percentile"):
        quantize(plain, target, images(), calibrator="best")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"nowhere\.onnx: no such file"):
        quantize(tmp_path / "nowhere.onnx", target, images())
    with pytest.raises(ExportError, match=r"plain\.onnx: cannot be run on the calibration: "):
        quantize(plain, target, torch.zeros(1, 5, 12, 12))
    target.write_bytes(b"old")
    with pytest.raises(WriteError, match="exists already; pass overwrite=True"):
        quantize(plain, target, images())
    assert target.read_bytes() == b"old"


@needs_data
def test_int8_of_a_real_network(tmp_path: Path) -> None:
    model = pretrained("resnet20")
    source = export(model, cifar_calibration(1), tmp_path / "fp32.onnx", dynamic="batch").path
    done = quantize(source, tmp_path / "int8.onnx", cifar_calibration(128))
    pixels, labels = _cifar("test")
    hits = []
    for path in (source, done.path):
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        rows = (session.run(None, {"x": normalise(image).numpy()})[0] for image in pixels.split(100))
        hits.append(np.concatenate([row.argmax(1) for row in rows]) == labels.numpy())
    assert math.isclose(100 * hits[0].mean(), 91.63, abs_tol=0.01)
    assert 100 * (hits[0].mean() - hits[1].mean()) <= 0.5


def test_crops_of_another_size_calibrate_a_file(tmp_path: Path) -> None:
    """A denoiser for large images is calibrated on small ones; both halves of the check run on these."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)).eval()
    source = export(net, torch.randn(1, 1, 32, 32), tmp_path / "large.onnx").path
    done = quantize(source, tmp_path / "int8.onnx", torch.randn(12, 1, 8, 8))
    assert done.sqnr_db > 20
    session = ort.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 1, 32, 32]
