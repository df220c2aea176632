"""The networks of the benchmarks: pretrained ones with images and a metric, and shapes with random weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from examples import digits
from tests import networks
from tests.benchmarks.awkward import UNet

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@dataclass(frozen=True)
class Case:
    """A pretrained network: calibration set by seed, metric, what of it may be lost, and the shape that is timed."""

    model: Callable[[], nn.Module]
    images: Callable[[int], Tensor]
    metric: Callable[[nn.Module], float]
    tolerance: float
    shape: tuple[int, ...]

    @property
    def example(self) -> Tensor:
        """The input that is timed."""
        return torch.zeros(self.shape)


def digit_net() -> nn.Module:
    """The network that ships in `examples`, which needs no other data."""
    model = digits.digit_net()
    model.load_state_dict(load_file(EXAMPLES / "digits.safetensors"))
    return model.eval()


def digit_images(_seed: int = 0) -> Tensor:
    """Its 128 calibration images."""
    return torch.from_numpy(np.load(EXAMPLES / "digits_calibration.npy"))


def _cifar(name: str) -> Case:
    images = networks.cifar_calibration
    return Case(
        lambda: networks.pretrained(name), lambda seed: images(1000, seed), networks.cifar_top1, 1.0, (1, 3, 32, 32)
    )


CASES = {
    "digits": Case(digit_net, digit_images, digits.accuracy, 0.5, (1, 1, 32, 32)),
    "resnet20": _cifar("resnet20"),
    "resnet56": _cifar("resnet56"),
    "dncnn": Case(
        lambda: networks.pretrained("dncnn"),
        lambda seed: networks.noisy_crops(200, 64, seed),
        networks.set12_psnr,
        0.2,
        (1, 1, 128, 128),
    ),
    "vdsr": Case(
        lambda: networks.pretrained("vdsr"),
        lambda seed: networks.blurred_crops(200, 64, seed),
        networks.vdsr_psnr,
        0.2,
        (1, 1, 128, 128),
    ),
}
"""Top-1 in percent for digits and CIFAR-10, PSNR in dB for DnCNN (Set12, sigma 25) and VDSR (Set5, x2)."""


def need(load: Callable[[], Any]) -> Any:
    """Return a package that a function of `tests.networks` loads; raise ImportError where a test would be skipped."""
    try:
        return load()
    except pytest.skip.Exception as skipped:
        raise ImportError(str(skipped)) from skipped


def _vision(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(need(networks.import_torchvision).models, name)(weights=None)


class Craft(nn.Module):
    """A text detector: VGG-16 with batch norms, a dilated conv, and a way up to two maps of half the size."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(
            [
                nn.Sequential(*_normed(3, 64), *_normed(64, 64), pool, *_normed(64, 128), *_normed(128, 128)),
                nn.Sequential(pool, *_normed(128, 256), *_normed(256, 256)),
                nn.Sequential(*_normed(256, 256), pool, *_normed(256, 512), *_normed(512, 512)),
                nn.Sequential(*_normed(512, 512), pool, *_normed(512, 512), *_normed(512, 512)),
            ]
        )
        self.wide = nn.Sequential(
            nn.MaxPool2d(3, 1, 1), nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.Conv2d(1024, 1024, 1)
        )
        sizes = [(1024 + 512, 512, 256), (256 + 512, 256, 128), (128 + 256, 128, 64), (64 + 128, 64, 32)]
        self.up = nn.ModuleList(nn.Sequential(*_normed(a, b, 1), *_normed(b, c)) for a, b, c in sizes)
        self.head = nn.Sequential(*_normed(32, 32), *_normed(32, 16), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level in self.down:
            x = level(x)
            kept.append(x)
        x = self.wide(x)
        for level, side in zip(self.up, kept[::-1], strict=True):
            x = F.interpolate(x, size=side.shape[2:], mode="bilinear", align_corners=False)
            x = level(torch.cat([x, side], 1))
        return self.head(x)


def _normed(inputs: int, outputs: int, kernel: int = 3) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


SHAPES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (lambda: networks.cifar_resnet(20), (1, 3, 32, 32)),
    "resnet18": (_vision("resnet18"), (1, 3, 224, 224)),
    "resnet50": (_vision("resnet50"), (1, 3, 224, 224)),
    "vgg16": (_vision("vgg16"), (1, 3, 224, 224)),
    "dncnn": (networks.dncnn, (1, 1, 256, 256)),
    "craft": (Craft, (1, 3, 320, 320)),
    "unet": (UNet, (1, 3, 512, 512)),
    "unet 31m at 512": (lambda: UNet((64, 128, 256, 512, 1024)), (1, 3, 512, 512)),
    "unet 31m at 1024": (lambda: UNet((64, 128, 256, 512, 1024)), (1, 3, 1024, 1024)),
}
"""Networks with random weights, where only time counts."""


def random_network(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network of `SHAPES` in eval mode, and an example."""
    build, shape = SHAPES[name]
    torch.manual_seed(0)
    return build().eval(), torch.randn(shape)


def add_networks(parser: argparse.ArgumentParser, known: Sequence[str], default: Sequence[str]) -> None:
    """Add the positional argument that names networks."""
    parser.add_argument("networks", nargs="*", metavar="network", help=f"of {', '.join(known)} (default: %(default)s)")
    parser.set_defaults(networks=list(default))


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """Add `--seeds`."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
