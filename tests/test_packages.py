"""Networks of popular packages go on through their own package's doors. Skipped where the package is not installed."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

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


def _nms(boxes: Tensor, scores: Tensor, most: float) -> Tensor:
    """Non-maximum suppression as torchvision's compiled operator does it."""
    overlap = importlib.import_module("torchvision.ops").box_iou(boxes, boxes)
    kept: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        if all(overlap[index, other] <= most for other in kept):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.long)


def _has_ops() -> bool:
    return True


@pytest.fixture(scope="module")
def detection() -> Iterator[Any]:
    """torchvision's detectors; its operators in Python where the compiled ones do not load beside this torch."""
    vision = import_torchvision()
    extension = importlib.import_module("torchvision.extension")
    library = torch.library.Library("torchvision", "FRAGMENT")
    compiled = extension._has_ops
    if not compiled():
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", _nms, "CPU")
        library.define(
            "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
            "int sampling_ratio, bool aligned) -> Tensor"
        )
        library.impl("roi_align", importlib.import_module("torchvision.ops.roi_align")._roi_align, "CPU")
        extension._has_ops = _has_ops
    yield vision.models.detection
    extension._has_ops = compiled
    library._destroy()


def _detector(detection: Any, kind: str) -> nn.Module:
    """Real heads, boxes and suppression over a backbone of two convs; random weights."""
    torch.manual_seed(0)
    backbone: Any = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU())
    backbone.out_channels = 24
    generator = importlib.import_module("torchvision.models.detection.anchor_utils")
    anchors = generator.AnchorGenerator(((16, 32),), ((1.0,),))
    size: dict[str, Any] = {"min_size": SIDE, "max_size": SIDE}
    if kind == "RetinaNet":
        model = detection.RetinaNet(backbone, 3, anchor_generator=anchors, topk_candidates=20, **size)
    elif kind == "FasterRCNN":
        pool = importlib.import_module("torchvision.ops").MultiScaleRoIAlign(["0"], 3, 2)
        few = {"rpn_pre_nms_top_n_test": 12, "rpn_post_nms_top_n_test": 6, "box_detections_per_img": 8}
        model = detection.FasterRCNN(
            backbone, 3, rpn_anchor_generator=anchors, box_roi_pool=pool, box_score_thresh=0.3, **few, **size
        )
    else:
        boxes = generator.DefaultBoxGenerator([[2]], scales=[0.2, 0.5])
        head = importlib.import_module("torchvision.models.detection.ssd").SSDHead([24], [4], 3)
        model = detection.ssd.SSD(backbone, boxes, (SIDE, SIDE), 3, head=head, topk_candidates=20)
    made: nn.Module = model.eval()
    return made


@pytest.mark.parametrize("kind", ["RetinaNet", "FasterRCNN", "SSD"])
def test_detectors_of_torchvision_give_a_bundle_or_say_what_to_export(
    kind: str, detection: Any, tmp_path: Path
) -> None:
    model = _detector(detection, kind)
    x = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    result = cs.convert(model, x, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False)
    assert result.changes
    try:
        bundle = cs.export(result, tmp_path / "out", pairs=0, progress=False)
    except cs.errors.ExportError as error:
        assert "export model.backbone, do the rest outside" in str(error)
        assert len(str(error).splitlines()) == 1
        assert list(tmp_path.iterdir()) == []
    else:
        assert bundle.converted.parity.passed
    if kind == "SSD":
        part = cs.convert(model.backbone, x, forms=[cs.DepthwiseSeparable(rank=2)], calibration=False)
        assert cs.export(part, tmp_path / "part", pairs=0, progress=False).converted.parity.passed
