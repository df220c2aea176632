"""A small pretrained network on real images: handwritten digits.

`digit_net` builds the network whose weights lie in `digits.safetensors`, and `accuracy` measures any network of its
kind on the 540 test images in `digits_test.npz`. Both need torch and numpy only; `train_digits.py` made the files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TEST_IMAGES = Path(__file__).resolve().with_name("digits_test.npz")


class ConvUnit(nn.Module):
    """3x3 conv, batch norm, ReLU; with a shortcut around them where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.shortcut = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out = F.relu(self.norm(self.conv(x)))
        return x + out if self.shortcut else out


class DigitNet(nn.Module):
    """Six 3x3 convs over three resolutions, global average pooling and a linear layer: 204 778 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(1, 32)
        self.stage1 = ConvUnit(32, 32)
        self.stage2 = nn.Sequential(ConvUnit(32, 64, stride=2), ConvUnit(64, 64))
        self.stage3 = nn.Sequential(ConvUnit(64, 96, stride=2), ConvUnit(96, 96))
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 1, 32, 32) in [0, 1] to scores (N, 10)."""
        features = self.stage3(self.stage2(self.stage1(self.stem(x))))
        scores: Tensor = self.head(features.mean((2, 3)))
        return scores


def digit_net() -> DigitNet:
    """Return the network with random weights; its trained ones are in `digits.safetensors`."""
    return DigitNet()


def as_input(pixels: np.ndarray | Tensor) -> Tensor:
    """Turn digits of scikit-learn, (N, 8, 8) from 0 to 16, into what the network takes: (N, 1, 32, 32) in [0, 1]."""
    small = torch.as_tensor(pixels).float()[:, None] / 16
    return F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)


def accuracy(model: nn.Module) -> float:
    """Return the share of the test images that `model` names right, in percent."""
    images, labels = _test_images()
    like = next(model.parameters())
    with _evaluate(model):
        found = [model(part.to(like)).argmax(1).cpu() for part in images.split(90)]
    return 100 * (torch.cat(found) == labels).double().mean().item()


@cache
def _test_images() -> tuple[Tensor, Tensor]:
    with np.load(_TEST_IMAGES) as file:
        return as_input(file["images"]), torch.from_numpy(file["labels"]).long()


@contextlib.contextmanager
def _evaluate(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode without gradients; afterwards every part of the model is in its old mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
