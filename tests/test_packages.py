"""Networks of popular packages go on through their own package's doors. Skipped where the package is not installed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convsurgeon as cs
from convsurgeon.forms.modules import SummedBranches
from tests import nets
from tests.networks import import_torchvision

pytestmark = pytest.mark.filterwarnings("ignore")  # those packages warn of much

SIDE = 64


def _yolo(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """A network of ultralytics with random weights; nothing is fetched, nothing is written but in the folder."""
    for variable, value in {"YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": str(folder), "YOLO_AUTOINSTALL": "false"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(folder)
    import_torchvision()
    ultralytics = pytest.importorskip("ultralytics")
    torch.manual_seed(0)
    return ultralytics.YOLO(f"{name}.yaml", verbose=False)


def _branches(model: nn.Module) -> int:
    return sum(isinstance(module, SummedBranches) for module in model.modules())


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n"])
def test_ultralytics_predicts_fuses_and_exports_what_was_fused_before(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yolo = _yolo(name, monkeypatch, tmp_path)
    yolo.model.eval().fuse(verbose=False)
    x = torch.rand(1, 3, SIDE, SIDE)
    result = cs.convert(yolo.model, x, forms=[cs.DepthwiseSeparable(rank=2)])
    count = len(result.changes)
    assert count > 30
    yolo.model = result.model
    wanted = copy.deepcopy(result.model)(x)[0]
    assert _branches(copy.deepcopy(yolo.model).fuse(verbose=False)) == count
    assert torch.equal(yolo.model.fuse(verbose=False)(x)[0], wanted)
    image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    assert len(yolo.predict(image, imgsz=SIDE, verbose=False)) == 1
    assert _branches(yolo.model) == count
    written = yolo.export(format="torchscript", imgsz=SIDE, verbose=False)
    found = torch.jit.load(written)(x)
    torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, wanted, rtol=1e-3, atol=1e-3)


def test_ultralytics_that_fuses_afterwards_is_told_to_fuse_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yolo = _yolo("yolov8n", monkeypatch, tmp_path)
    x = torch.rand(1, 3, SIDE, SIDE)
    result = cs.convert(yolo.model.eval(), x, forms=[cs.DepthwiseSeparable(rank=2)])
    with pytest.raises(AttributeError, match=r"fold batch norms \(model.fuse\(\) and the like\) before converting"):
        result.model.fuse(verbose=False)


def test_a_converted_site_offers_what_is_read_of_a_conv() -> None:
    model = nets.Plain()
    converted = cs.convert(model, torch.randn(1, 3, 12, 12), forms=[cs.DepthwiseSeparable(rank=2)]).model
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    for name in (*names, "padding_mode", "transposed", "output_padding"):
        assert getattr(converted.down, name) == getattr(model.down, name)
    assert not hasattr(converted.down, "weight")
    with pytest.raises(AttributeError, match="convsurgeon put it in the place of a conv"):
        converted.down.bias  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        converted.down.nothing  # noqa: B018
