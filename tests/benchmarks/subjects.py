"""The networks of `networks`: pretrained ones of the data folder, packages with weights, and small ones trained here.

Each has images to calibrate on by seed, others to test on, and what its user would measure.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import convsurgeon as cs
from examples import digits
from tests import networks
from tests.benchmarks import metrics, popular, small
from tests.benchmarks.cases import CASES, EXAMPLES, digit_images, digit_net
from tests.benchmarks.metrics import Metric
from tests.networks import DATA

Batches = Iterator[tuple[Tensor, Tensor]]
_BGR = torch.tensor([104.00699, 116.66877, 122.67892]).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Subject:
    """How the network is made, its calibration set by seed, test images with answers, its metric, and what is timed.

    `more` gives so many unlabelled images of its kind by number and seed, and `transform` is what they stand.
    """

    make: Callable[[], nn.Module]
    images: Callable[[int], Tensor]
    test: Callable[[], Batches]
    metric: Metric
    shape: tuple[int, ...]
    more: Callable[[int, int], Tensor] | None = None
    transform: cs.Augment | None = None


class Picks(nn.Module):
    """A classifier that returns the class."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).argmax(1)


class Fire(nn.Module):
    """The block of SqueezeNet."""

    def __init__(self, inputs: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, narrow, 1)
        self.expand1, self.expand3 = nn.Conv2d(narrow, wide, 1), nn.Conv2d(narrow, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0 of 1000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, 2)
        fires = [(96, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128), (256, 48, 192), (384, 48, 192)]
        parts: list[nn.Module] = [Fire(*sizes) for sizes in [*fires, (384, 64, 256), (512, 64, 256)]]
        for place in (0, 4, 9):
            parts.insert(place, nn.MaxPool2d(3, 2, ceil_mode=True))
        self.features = nn.Sequential(*parts)
        self.conv10 = nn.Conv2d(512, 1000, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv10(self.features(F.relu(self.conv1(x))))).mean((2, 3))


class HED(nn.Module):
    """An edge detector on VGG-16."""

    def __init__(self) -> None:
        super().__init__()
        widths, inputs = [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3], 3
        for number, stage in enumerate(widths, 1):
            layers: list[nn.Module] = []
            for outputs in stage:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = outputs
            self.add_module(f"block{number}", nn.Sequential(*layers))
            self.add_module(f"dsn{number}", nn.Conv2d(inputs, 1, 1))
        self.fuse = nn.Conv2d(5, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        size, sides = x.shape[2:], []
        for number in range(1, 6):
            x = self.get_submodule(f"block{number}")(F.max_pool2d(x, 2, ceil_mode=True) if number > 1 else x)
            side = self.get_submodule(f"dsn{number}")(x)
            sides.append(F.interpolate(side, size, mode="bilinear", align_corners=False))
        return self.fuse(torch.cat(sides, 1)).sigmoid()


class FSRCNN(nn.Module):
    """Super-resolution x2 with PReLU, ending in a transposed conv."""

    def __init__(self) -> None:
        super().__init__()
        self.first_part = nn.Sequential(nn.Conv2d(1, 56, 5, padding=2), nn.PReLU(56))
        middle: list[nn.Module] = [nn.Conv2d(56, 12, 1), nn.PReLU(12)]
        for _ in range(4):
            middle += [nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(12)]
        self.mid_part = nn.Sequential(*middle, nn.Conv2d(12, 56, 1), nn.PReLU(56))
        self.last_part = nn.ConvTranspose2d(56, 1, 9, 2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_part(self.mid_part(self.first_part(x)))


class SRVGG(nn.Module):
    """The compact network of Real-ESRGAN, x4."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.PReLU(64)]
        for _ in range(16):
            layers += [nn.Conv2d(64, 64, 3, padding=1), nn.PReLU(64)]
        self.body = nn.Sequential(*layers, nn.Conv2d(64, 48, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.body(x), 4) + F.interpolate(x, scale_factor=4.0, mode="nearest")


def _loaded(build: Callable[[], nn.Module], file: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = build()
        model.load_state_dict({key: value.float() for key, value in load_file(DATA / file).items()})
        return model.eval()

    return make


def _cifar_test() -> Batches:
    with np.load(DATA / "cifar10" / "cifar10.npz") as file:
        images, labels = torch.from_numpy(file["x_test"]), torch.from_numpy(file["y_test"]).long()
    yield from zip(networks.normalise(images.permute(0, 3, 1, 2)).split(233), labels.split(233), strict=True)


def _jpeg_test() -> Batches:
    """Yield all 10 000 test images as JPEG, which is lossy: for agreement with the original more than for accuracy."""
    with zipfile.ZipFile(DATA / "cifar10" / "jpeg10000.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        kinds = sorted({name.split("/")[0] for name in names})
        for start in range(0, len(names), 250):
            some = names[start : start + 250]
            read = [torch.from_numpy(np.array(Image.open(io.BytesIO(archive.read(name))))) for name in some]
            labels = torch.tensor([kinds.index(name.split("/")[0]) for name in some])
            yield networks.normalise(torch.stack(read).permute(0, 3, 1, 2)), labels


def _cifar(name: str, test: Callable[[], Batches] = _cifar_test) -> Subject:
    case = CASES[name]
    shifted = cs.Augment(shift=4)
    return Subject(case.model, case.images, test, metrics.TOP1, case.shape, networks.cifar_calibration, shifted)


def _imagenet(start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return images start to stop of the fixed order, as SqueezeNet takes them, and their classes."""
    chosen = np.random.default_rng(0).permutation(1000)[start:stop]
    with np.load(DATA / "imagenet" / "imagenet1000_227.npz") as file:
        jpeg, offsets = file["jpeg"].tobytes(), file["offsets"]
    read = [_bgr(io.BytesIO(jpeg[offsets[index] : offsets[index + 1]])) for index in chosen]
    return torch.cat(read), torch.from_numpy(chosen)


def _imagenet_test() -> Batches:
    for start in range(200, 1000, 50):
        yield _imagenet(start, start + 50)


def _bgr(file: Any) -> Tensor:
    with Image.open(file) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32))
    return pixels.permute(2, 0, 1).flip(0)[None] - _BGR


def _edge_crops(seed: int) -> Tensor:
    return 255 * popular.crops(60, 96, seed).flip(1) - _BGR


def _edges_test() -> Batches:
    """Yield the first ten of BSDS500's test photographs with their annotators' boundaries."""
    with np.load(DATA / "hed" / "bsds_test_boundaries.npz") as file:
        for path in sorted((DATA / "hed" / "bsds_test").glob("*.jpg"))[:10]:
            shape = tuple(int(size) for size in file[f"{path.stem}_shape"])
            drawn = np.unpackbits(file[path.stem])[: int(np.prod(shape))].reshape(shape)
            yield _bgr(path), torch.from_numpy(drawn).float()[None]


def _denoised() -> Batches:
    """Yield the seven images of Set12 that are 256x256."""
    for index in range(7):
        with Image.open(DATA / "dncnn" / f"{index + 1:02d}.png") as image:
            clean = torch.from_numpy(np.array(image.convert("L"), dtype=np.float32))[None, None] / 255
        yield (
            clean + networks.SIGMA * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1000 + index)),
            clean,
        )


def _set5_vdsr() -> Batches:
    with np.load(DATA / "vdsr" / "set5_y.npz") as file:
        for name in ("bird", "butterfly", "head", "woman"):
            yield tuple(
                torch.from_numpy(file[f"{name}_GT_x2_{kind}"]).float()[None, None] / 255 for kind in ("bicubic", "gt")
            )  # type: ignore[misc]


def _set5_fsrcnn() -> Batches:
    with np.load(DATA / "fsrcnn" / "set5_x2.npz") as file:
        for name in ("baby", "bird", "butterfly", "head", "woman"):
            yield tuple(torch.from_numpy(file[f"{name}_{kind}"]).float()[None, None] / 255 for kind in ("lr", "hr"))  # type: ignore[misc]


def _grey_halved(seed: int) -> Tensor:
    whole = popular.crops(200, 96, seed).mean(1, keepdim=True)
    return F.interpolate(whole, scale_factor=0.5, mode="bicubic", antialias=True)


def _quartered(count: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    whole = popular.crops(count, 4 * side, seed)
    return F.interpolate(whole, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1), whole


def _restored(name: str, test: Callable[[], Batches], crops: Callable[[int, int, int], Tensor]) -> Subject:
    case, metric = CASES[name], metrics.PSNR
    return Subject(case.model, case.images, test, metric, case.shape, lambda n, seed: crops(n, 40, seed), cs.Augment())


def _small(name: str) -> Subject:
    net = small.NETS[name]

    def test() -> Batches:
        images, answers = net.drawn(60 if name.startswith("super") else 1000, 1000)
        yield from zip(images.split(50), answers.split(50), strict=True)

    def images(seed: int) -> Tensor:
        return net.drawn(200, 100 + seed)[0]

    def more(count: int, seed: int) -> Tensor:
        return net.drawn(count, 500 + seed)[0]

    shape = (1, *net.drawn(1, 0)[0].shape[1:])
    return Subject(lambda: small.trained(name), images, test, net.metric, shape, more)


def _digits() -> Batches:
    with np.load(EXAMPLES / "digits_test.npz") as file:
        yield digits.as_input(file["images"]), torch.from_numpy(file["labels"]).long()


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "resnet20": lambda: _cifar("resnet20"),
    "resnet20, 10 000 JPEG": lambda: _cifar("resnet20", _jpeg_test),
    "resnet56": lambda: _cifar("resnet56"),
    "squeezenet": lambda: Subject(
        _loaded(SqueezeNet, "imagenet/squeezenet1_0.safetensors"),
        lambda _seed: _imagenet(0, 200)[0],
        _imagenet_test,
        metrics.TOP1,
        (1, 3, 227, 227),
    ),
    "hed": lambda: Subject(
        _loaded(HED, "hed/hed_vgg16_fp16.safetensors"), _edge_crops, _edges_test, metrics.EDGES, (1, 3, 96, 96)
    ),
    "dncnn": lambda: _restored("dncnn", _denoised, networks.noisy_crops),
    "vdsr": lambda: _restored("vdsr", _set5_vdsr, networks.blurred_crops),
    "fsrcnn": lambda: Subject(
        _loaded(FSRCNN, "fsrcnn/fsrcnn_x2.safetensors"), _grey_halved, _set5_fsrcnn, metrics.PSNR, (1, 1, 128, 128)
    ),
    "srvgg": lambda: Subject(
        _loaded(SRVGG, "srvgg/realesr_animevideov3_x4.safetensors"),
        lambda seed: _quartered(60, 32, seed)[0],
        lambda: iter([_quartered(20, 32, 1000)]),
        metrics.PSNR,
        (1, 3, 64, 64),
    ),
    "digits": lambda: Subject(digit_net, digit_images, _digits, metrics.TOP1, (1, 1, 32, 32)),
    "digits, argmax": lambda: Subject(
        lambda: Picks(digit_net()).eval(), digit_images, _digits, metrics.TOP1, (1, 1, 32, 32)
    ),
    **{name: (lambda name=name: _small(name)) for name in small.NETS},  # type: ignore[misc]
}
