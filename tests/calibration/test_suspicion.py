"""Images that do not fit the network are refused with what to pass instead, or joined by images that fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.calibration.collect import gather, read
from convsurgeon.calibration.dataset import Calibration, images_in
from convsurgeon.calibration.dead_leaves import draw_images
from convsurgeon.calibration.normalisation import common_normalisations, norm_coverage, trained_norms
from tests import nets
from tests.calibration.loading import load
from tests.calibration.test_synthetic import EXAMPLE, FORM, _knowing

IMAGENET = common_normalisations(3)[3]
PIXELS = draw_images(70, 3, 16, 16, torch.Generator().manual_seed(9))
RIGHT = IMAGENET.apply(PIXELS)


def _gathered(images: object, model: nn.Module | None = None, example: Tensor = EXAMPLE) -> Calibration:
    found = gather(cs.capture(model or _knowing(IMAGENET), example), images, seed=0, progress=False)
    assert found is not None
    return found


def _all(data: Calibration) -> Tensor:
    return torch.cat([one.tensors()[0] for one in (*data.fitted, *data.held_back)])


OTHER_NUMBERS: dict[str, Callable[[], object]] = {
    "floats from 0 to 255": lambda: PIXELS * 255,
    "floats from 0 to 1": lambda: PIXELS,
    "floats from -1 to 1": lambda: PIXELS * 2 - 1,
    "bytes": lambda: (PIXELS * 255).byte(),
    "16 bits as numbers": lambda: PIXELS * 65535,
    "divided by 255 twice": lambda: PIXELS / 255,
    "Pillow images": lambda: [Image.fromarray((one.permute(1, 2, 0) * 255).byte().numpy()) for one in PIXELS],
    "normalised by a mistake": lambda: cs.Images(PIXELS, mean=0.0, std=1 / 255),
}


@pytest.mark.parametrize("case", OTHER_NUMBERS)
def test_other_numbers_are_refused_with_code_that_makes_them_right(case: str) -> None:
    images = OTHER_NUMBERS[case]()
    with pytest.raises(cs.errors.CalibrationError) as told:
        _gathered(images)
    (options,) = re.findall(r"cs\.Images\(\.\.\., (mean=.*?, std=.*?)\) \(--mean .* --std .*\), or", str(told.value))
    source = images.source if isinstance(images, cs.Images) else images
    right = eval(f"cs.Images(source, {options})", {"cs": cs, "source": source})
    torch.testing.assert_close(_all(_gathered(right)), RIGHT, atol=0.02, rtol=0)


def test_right_images_raise_no_suspicion() -> None:
    data = _gathered(RIGHT)
    assert not data.warning
    assert not data.notes
    assert torch.equal(_all(data), RIGHT)


FAULTS: dict[str, Callable[[], Tensor]] = {
    "black": lambda: torch.zeros(70, 3, 16, 16),
    "one colour each": lambda: RIGHT.mean((2, 3), keepdim=True).expand_as(RIGHT),
    "one image many times": lambda: RIGHT[:1].repeat(70, 1, 1, 1),
    "noise": lambda: 5 * torch.randn(70, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("case", FAULTS)
def test_images_that_show_too_little_are_joined_by_those_that_the_norms_accept(case: str) -> None:
    model, images = _knowing(IMAGENET), FAULTS[case]()
    with pytest.warns(UserWarning, match="do not show what the network was trained on"):
        data = _gathered(images, model)
    assert len(_all(data)) == 70 + 128
    assert "joined" in data.warning
    joined = torch.stack([one for one in _all(data) if not bool((one == images).flatten(1).all(1).any())])
    assert len(joined) == 128
    with torch.no_grad():
        divergence, idle = norm_coverage(model, trained_norms(model), [cs.Example.of(joined)])
    assert divergence < 0.1
    assert idle < 0.05
    first = data.held_back[0].tensors()[0]
    assert 0 < sum(bool((one == images).flatten(1).all(1).any()) for one in first) < len(first)


def test_a_report_begins_with_what_is_wrong() -> None:
    with pytest.warns(UserWarning, match="joined them") as told:
        result = cs.convert(_knowing(IMAGENET), EXAMPLE, calibration=FAULTS["black"](), forms=[FORM], progress=False)
    assert len(told) == 1
    assert str(result.report).startswith(result.report.warning)
    assert result.report.warning == str(told[0].message)
    assert result.made_up is None


def test_trusted_images_are_used_alone_and_said_to_be_strange() -> None:
    images = FAULTS["black"]()
    with pytest.warns(UserWarning, match="used as they are"):
        data = _gathered(cs.Images(images, trusted=True))
    assert torch.equal(_all(data), images)
    assert data.warning
    with pytest.warns(UserWarning, match="used as they are"):
        assert torch.equal(_all(_gathered(cs.Images(PIXELS * 255, trusted=True))), PIXELS * 255)


def _plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))


@pytest.mark.parametrize("case", ["black", "one colour each", "one image many times"])
def test_without_batch_norms_images_that_show_nothing_are_refused(case: str) -> None:
    images = FAULTS[case]()
    with pytest.raises(cs.errors.CalibrationError, match="trusted=True"):
        _gathered(images, _plain())
    with pytest.warns(UserWarning, match="used as they are"):
        assert torch.equal(_all(_gathered(cs.Images(images, trusted=True), _plain())), images)


def test_the_same_answer_for_all_is_refused_unless_the_network_has_no_other() -> None:
    class Rough(nn.Module):
        def __init__(self, slope: float) -> None:
            super().__init__()
            self.conv, self.slope = nn.Conv2d(3, 8, 3), slope

        def forward(self, x: Tensor) -> Tensor:
            edges = (self.conv(x)[:, :, 1:] - self.conv(x)[:, :, :-1]).abs()
            return (edges - 0.05).relu().mean((2, 3)) * self.slope + 1

    smooth = RIGHT.mean((2, 3), keepdim=True) + 1e-3 * RIGHT  # drawn images of their spread have edges
    with pytest.raises(cs.errors.CalibrationError, match="the same output for all of 64"):
        _gathered(smooth, Rough(1.0).eval())
    assert not _gathered(smooth, Rough(0.0).eval()).warning


def test_without_batch_norms_the_example_is_what_is_known() -> None:
    example = torch.rand(1, 3, 16, 16)
    with pytest.raises(cs.errors.CalibrationError, match="images hold values from 0 to 255"):
        _gathered(PIXELS * 255, _plain(), example)
    with pytest.raises(cs.errors.CalibrationError, match=r"the example from .* to 25"):
        _gathered(PIXELS, _plain(), example * 255)
    with pytest.raises(cs.errors.CalibrationError, match="images hold values from -"):
        _gathered((PIXELS - 0.45) / 0.225, _plain(), example)
    assert not _gathered((PIXELS - 0.45) / 0.225, _plain(), example - 0.5).warning
    assert not _gathered(PIXELS, _plain(), example).warning
    assert not _gathered(PIXELS * 255, _plain(), torch.zeros(1, 3, 16, 16)).warning


def test_large_tensors_are_refused_before_the_network_runs_and_the_rest_is_read() -> None:
    def batches() -> object:
        yield torch.rand(4, 3, 64, 64)
        raise AssertionError("a second batch was read")

    with pytest.raises(cs.errors.CalibrationError, match=r"size=\(16, 16\)"):
        _gathered(batches())


def test_few_images_are_told_or_joined_by_others() -> None:
    (note,) = _gathered(RIGHT[:40]).notes
    assert "40 images are few" in note
    with pytest.warns(UserWarning, match="there are 4"):
        assert len(_all(_gathered(RIGHT[:4]))) == 132
    with pytest.warns(UserWarning, match="there is 1"):
        assert images_in(_gathered(RIGHT[:1]).held_back[0]) > 16


def test_maps_that_show_nothing_anywhere_are_refused() -> None:
    class Finder(nn.Module):
        def __init__(self, least: float) -> None:
            super().__init__()
            self.conv, self.least = nn.Conv2d(3, 1, 3), least

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).abs() - self.least

    assert not _gathered(RIGHT, Finder(0.1).eval()).warning
    with pytest.raises(cs.errors.CalibrationError, match="decides alike"):
        _gathered(RIGHT, Finder(100.0).eval())
    with pytest.warns(UserWarning, match="used as they are"):
        _gathered(cs.Images(RIGHT, trusted=True), Finder(100.0).eval())


def test_a_network_of_bytes_gets_bytes() -> None:
    class Scaled(nets.Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float() / 255)

    example = torch.randint(256, (1, 3, 12, 12), dtype=torch.uint8)
    pictures = [Image.fromarray((one.permute(1, 2, 0) * 255).byte().numpy()) for one in PIXELS]
    data = _gathered(pictures, Scaled().eval(), example)
    assert _all(data).dtype == torch.uint8
    assert int(_all(data).max()) > 200
    with pytest.raises(cs.errors.CalibrationError, match="uint8"):
        _gathered(PIXELS[:, :, :12, :12], Scaled().eval(), example)


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
