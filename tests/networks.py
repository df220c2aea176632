"""The real networks of `../shared/data`, written out, with their weights, images and reference metrics.

Beside pytest it needs Pillow, which only tests use. torchvision and timm are optional.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

needs_data = pytest.mark.skipif(
    not (DATA / "README.md").is_file(),
    reason="the pretrained networks and images are not here: they lie in ../shared/data beside the repository",
)

SIGMA = 25 / 255
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
_REGISTER_FAKE = torch.library.register_fake


class BasicBlock(nn.Module):
    """Two 3x3 convs around a shortcut without weights."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.grows = inputs != outputs

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        if not self.grows:
            return x
        margin = self.conv1.out_channels // 4
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, margin, margin))


class CifarResNet(nn.Module):
    """CIFAR ResNet of He et al. 2016 with parameter-free shortcuts ("option A")."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride), *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1))
    )


class DnCNN(nn.Module):
    """17-layer residual denoiser, batch norm merged."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(15):
            layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True)]
        self.model = nn.Sequential(*layers, nn.Conv2d(64, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.model(x)


class _ConvReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x))


class VDSR(nn.Module):
    """20-layer residual super-resolution network, bias-free."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.residual_layer = nn.Sequential(*(_ConvReLU() for _ in range(18)))
        self.output = nn.Conv2d(64, 1, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.output(self.residual_layer(self.relu(self.input(x))))


class SegNet(nn.Module):
    """VGG-16 encoder that hands its max-pool indices to a mirrored max-unpool decoder: 26 convs, random weights."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        w = width
        down = [[w] * 2, [2 * w] * 2, [4 * w] * 3, [8 * w] * 3, [8 * w] * 3]
        up = [[8 * w] * 3, [8 * w, 8 * w, 4 * w], [4 * w, 4 * w, 2 * w], [2 * w, w], [w]]
        self.encoder = nn.ModuleList(_conv_stack(i, o) for i, o in zip((3, w, 2 * w, 4 * w, 8 * w), down, strict=True))
        self.decoder = nn.ModuleList(
            _conv_stack(i, o) for i, o in zip((8 * w, 8 * w, 4 * w, 2 * w, w), up, strict=True)
        )
        self.classifier = nn.Conv2d(w, classes, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for stage in self.encoder:
            x, indices = self.pool(stage(x))
            kept.append(indices)
        for stage, indices in zip(self.decoder, reversed(kept), strict=True):
            x = stage(self.unpool(x, indices))
        return self.classifier(x)


def _conv_stack(inputs: int, widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for outputs in widths:
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        inputs = outputs
    return nn.Sequential(*layers)


def cifar_resnet(depth: int) -> CifarResNet:
    """ResNet-20, 32, 44, 56 ... with random weights."""
    return CifarResNet((depth - 2) // 6)


def dncnn() -> DnCNN:
    return DnCNN()


def vdsr() -> VDSR:
    return VDSR()


def segnet(classes: int = 12, width: int = 64) -> SegNet:
    """The input's sides must be multiples of 32."""
    return SegNet(classes, width)


_PRETRAINED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "resnet20": ("cifar10/resnet20", lambda: cifar_resnet(20)),
    "resnet56": ("cifar10/resnet56", lambda: cifar_resnet(56)),
    "dncnn": ("dncnn/dncnn_25", dncnn),
    "vdsr": ("vdsr/vdsr", vdsr),
}


def weights_path(name: str) -> Path:
    """The safetensors file of a network that `pretrained` knows."""
    return DATA / f"{_PRETRAINED[name][0]}.safetensors"


def pretrained(name: str) -> nn.Module:
    """One of `resnet20`, `resnet56`, `dncnn`, `vdsr` with its weights, in eval mode."""
    model = _PRETRAINED[name][1]()
    found = model.load_state_dict(load_file(weights_path(name)), strict=False)
    lost = [key for key in found.missing_keys if not key.endswith("num_batches_tracked")]
    assert not lost, lost
    assert not found.unexpected_keys, found.unexpected_keys
    return model.eval()


def cifar_top1(model: nn.Module) -> float:
    """Top-1 in percent on the 932 CIFAR-10 test images."""
    images, labels = _cifar("test")
    with _evaluating(model):
        found = torch.cat([model(normalise(part)).argmax(1) for part in images.split(233)])
    return 100 * (found == labels).double().mean().item()


def cifar_calibration(n: int, seed: int = 0) -> Tensor:
    """`n` different training images, normalised, (n, 3, 32, 32)."""
    images, _ = _cifar("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return normalise(images[order[:n]])


def normalise(images: Tensor) -> Tensor:
    """uint8 NCHW to what the CIFAR networks take."""
    return (images.float() / 255 - _MEAN) / _STD


def set12_psnr(model: nn.Module, images: int = 12) -> float:
    """Mean PSNR in dB of a denoiser over the first `images` of Set12, at sigma 25."""
    with _evaluating(model):
        return _mean([_denoised_psnr(model, index) for index in range(images)])


def _denoised_psnr(model: nn.Module, index: int) -> float:
    clean = _grey(DATA / "dncnn" / f"{index + 1:02d}.png")[None, None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1000 + index))
    return psnr(model(clean + SIGMA * noise).clamp(0, 1), clean)


def vdsr_psnr(model: nn.Module, scale: int = 2) -> float:
    """Mean PSNR in dB of a super-resolution network over the four Set5 images, x2 or x3."""
    with _evaluating(model):
        return _mean([_upscaled_psnr(model, name, scale) for name in ("bird", "butterfly", "head", "woman")])


def _upscaled_psnr(model: nn.Module, name: str, scale: int) -> float:
    pairs = _set5()
    bicubic, truth = (pairs[f"{name}_GT_x{scale}_{kind}"][None, None] for kind in ("bicubic", "gt"))
    inner = (..., slice(scale, -scale), slice(scale, -scale))
    return psnr(model(bicubic / 255).clamp(0, 1)[inner], truth[inner] / 255)


def psnr(found: Tensor, truth: Tensor) -> float:
    """In dB, for images in [0, 1]."""
    return -10 * math.log10((found - truth).double().square().mean().item())


def noisy_crops(n: int, size: int, seed: int = 0) -> Tensor:
    """`n` grey crops of the photographs with noise of sigma 25, (n, 1, size, size): what DnCNN takes."""
    generator = torch.Generator().manual_seed(seed)
    crops = _crops(n, size, generator)
    return crops + SIGMA * torch.randn(crops.shape, generator=generator)


def blurred_crops(n: int, size: int, seed: int = 0, scale: int = 2) -> Tensor:
    """`n` grey crops of the photographs, made small and bicubically large again: what VDSR takes."""
    crops = _crops(n, size, torch.Generator().manual_seed(seed))
    return torch.stack([_blurred(crop[0], scale)[None] for crop in crops])


def _crops(n: int, size: int, generator: torch.Generator) -> Tensor:
    photos = _photos()
    return torch.stack([_crop(photos[index % len(photos)], size, generator)[None] for index in range(n)])


def _crop(photo: Tensor, size: int, generator: torch.Generator) -> Tensor:
    top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in photo.shape)
    return photo[top : top + size, left : left + size]


def _blurred(image: Tensor, scale: int) -> Tensor:
    height, width = image.shape
    picture = Image.fromarray((image * 255).round().byte().numpy())
    small = picture.resize((width // scale, height // scale), Image.Resampling.BICUBIC)
    return _unit(small.resize((width, height), Image.Resampling.BICUBIC))


@cache
def _cifar(split: str) -> tuple[Tensor, Tensor]:
    with np.load(DATA / "cifar10" / "cifar10.npz") as file:
        images, labels = torch.from_numpy(file[f"x_{split}"]), torch.from_numpy(file[f"y_{split}"])
    return images.permute(0, 3, 1, 2).contiguous(), labels.long()


@cache
def _set5() -> dict[str, Tensor]:
    with np.load(DATA / "vdsr" / "set5_y.npz") as file:
        return {name: torch.from_numpy(file[name]).float() for name in file.files}


@cache
def _photos() -> list[Tensor]:
    return [_grey(path) for path in sorted((DATA / "photos").glob("*.jpg"))]


def _grey(path: Path) -> Tensor:
    with Image.open(path) as image:
        return _unit(image.convert("L"))


def _unit(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32)) / 255


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every submodule's mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def import_torchvision() -> ModuleType:
    """torchvision with its `models`, with or without its compiled operators; skips the test where it is absent."""
    with _without_compiled_operators():
        vision: ModuleType = pytest.importorskip("torchvision")
        importlib.import_module("torchvision.models")
    return vision


def import_timm() -> ModuleType:
    """timm; skips the test where it or torchvision is absent."""
    import_torchvision()
    with _without_compiled_operators():
        timm: ModuleType = pytest.importorskip("timm")
    return timm


@contextlib.contextmanager
def _without_compiled_operators() -> Iterator[None]:
    """The PyPI wheel fails beside a CPU-only torch on `torchvision::nms` and its like: they are not registered."""

    def register(op: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return _REGISTER_FAKE(op, *args, **kwargs)

    torch.library.register_fake = register
    try:
        yield
    finally:
        torch.library.register_fake = _REGISTER_FAKE
