"""Calibration that is fed nonsense says what it saw and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.calibration.collect import read
from convsurgeon.calibration.dead_leaves import draw_images
from convsurgeon.calibration.normalisation import common_normalisations
from convsurgeon.calibration.sanity_checks import check_images
from tests.calibration.loading import load
from tests.calibration.test_synthetic import EXAMPLE, _knowing

IMAGENET = common_normalisations(3)[3]
PIXELS = draw_images(70, 3, 16, 16, torch.Generator().manual_seed(9))
RIGHT = IMAGENET.apply(PIXELS)


def _notes(images: Tensor, model: nn.Module | None = None, example: Tensor = EXAMPLE) -> str:
    seen = cs.capture(model or _knowing(IMAGENET), example)
    return " ".join(check_images(seen, read(images, seen.example)).notes)


WRONG: dict[str, tuple[Callable[[], Tensor], str]] = {
    "floats from 0 to 255": (lambda: PIXELS * 255, "Divided by 255 and in ImageNet's normalisation it would be"),
    "bytes": (lambda: (PIXELS * 255).byte(), "Divided by 255 and in ImageNet's normalisation it would be"),
    "16 bits as numbers": (lambda: PIXELS * 65535, "Divided by 65535 and in ImageNet's normalisation it would be"),
    "divided twice": (lambda: IMAGENET.apply(PIXELS / 255), "are not what the network's 3 batch norms were trained on"),
    "all zero": (
        lambda: torch.zeros(70, 3, 16, 16),
        "100 % of the calibration images looked at hold one value everywhere",
    ),
    "one image many times": (lambda: RIGHT[:1].repeat(70, 1, 1, 1), "are all the same one; different ones"),
    "noise": (lambda: 5 * torch.randn(70, 3, 16, 16), "are not what the network's 3 batch norms were trained on"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_images_are_named(case: str) -> None:
    make, words = WRONG[case]
    assert words in _notes(make())


def test_right_images_raise_no_suspicion() -> None:
    assert not _notes(RIGHT)


def test_no_answer_for_any_image_is_told() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((2, 3)) * 0 + 1

    assert "gives the same output for all of 56 calibration images" in _notes(RIGHT, Dead())


def test_few_images_are_told_in_the_report() -> None:
    result = cs.convert(_knowing(IMAGENET), EXAMPLE, calibration=RIGHT[:1], progress=False)
    assert "note: 1 image is few to calibrate on; a few hundred do best." in str(result.report)


def test_without_batch_norms_the_example_is_what_is_known() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    assert "The calibration images reach 25" in _notes(PIXELS * 255, plain, torch.rand(1, 3, 16, 16))
    assert not _notes(PIXELS, plain, torch.rand(1, 3, 16, 16))


def test_channels_last_are_refused_with_the_remedy() -> None:
    with pytest.raises(cs.errors.CalibrationError, match=r"channels come first: pass batch.permute\(0, 3, 1, 2\)"):
        read(RIGHT.permute(0, 2, 3, 1), cs.Example.of(EXAMPLE))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "float32", "float64"])
def test_arrays_of_every_depth_are_the_same_pixels(dtype: str, tmp_path: Path) -> None:
    most = {"uint8": 255, "uint16": 65535, "int32": 65535, "int64": 255}.get(dtype, 1)
    pixels = PIXELS[:, :1, :, :].numpy() * most
    pixels.flat[0] = most
    np.save(tmp_path / "images.npy", np.round(pixels).astype(dtype) if most > 1 else pixels.astype(dtype))
    read_back = load(tmp_path / "images.npy", (1, 1, 16, 16))
    wanted = PIXELS[:, :1].clone()
    wanted.view(-1)[0] = 1
    torch.testing.assert_close(read_back, wanted, atol=0.5 / 255, rtol=0)


def test_whole_numbers_that_are_no_picture_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.full((4, 16, 16), -3, dtype=np.int16))
    with pytest.raises(cs.errors.CalibrationError, match="int16 from -3 to -3"):
        load(tmp_path / "images.npy", (1, 1, 16, 16))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kind", "name"), [("uint8", "a.png"), ("uint16", "a.png"), ("float32", "a.tiff")])
def test_files_of_every_depth_are_the_same_pixels(kind: str, name: str, channels: int, tmp_path: Path) -> None:
    grey = PIXELS[0, 0].numpy()
    most = {"uint8": 255, "uint16": 65535, "float32": 1}[kind]
    Image.fromarray((grey * most).round().astype(kind) if most > 1 else grey).save(tmp_path / name)
    images = load(tmp_path, (1, channels, 16, 16))
    wanted = PIXELS[:1, :1].expand(1, channels, 16, 16)
    torch.testing.assert_close(images, wanted.contiguous(), atol=0.51 / 255, rtol=0)
