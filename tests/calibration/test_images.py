"""Whatever holds images is read, prepared as its options say, or refused in a line at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import convsurgeon as cs
from convsurgeon.calibration.collect import read
from tests import nets
from tests.calibration.loading import load

PIXELS = np.random.default_rng(0).integers(0, 256, (80, 20, 16, 3), np.uint8)
FIRST = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255
LIKE = cs.Example.of(torch.zeros(1, 3, 20, 16))


class Pictures(Dataset[Any]):
    """Items as a torchvision data set gives them: a Pillow image and a label."""

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return Image.fromarray(PIXELS[index]), index % 10


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield FIRST[0]


def _all(images: object) -> Tensor:
    data = read(images, LIKE)
    return torch.cat([batch.tensors()[0] for batch in (*data.fitted, *data.held_back)])


@pytest.mark.parametrize(
    "source",
    [
        FIRST,
        FIRST.numpy(),
        list(FIRST.split(30)),
        DataLoader(TensorDataset(FIRST, torch.zeros(80)), batch_size=30),
        TensorDataset(FIRST, torch.zeros(80)),
        Pictures(),
    ],
    ids=["tensor", "array", "batches", "loader", "data set", "pictures"],
)
def test_every_source_gives_the_same_images(source: object) -> None:
    torch.testing.assert_close(_all(source), FIRST)
    torch.testing.assert_close(_all(cs.Images(source, mean=0.5, std=(0.25,) * 3)), (FIRST - 0.5) / 0.25)


def test_paths_are_read_as_text_and_as_paths(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", PIXELS)
    (tmp_path / "folder").mkdir()
    for index in range(8):
        Image.fromarray(PIXELS[index]).save(tmp_path / "folder" / f"{index}.png")
    torch.testing.assert_close(_all(str(tmp_path / "images.npy")), FIRST)
    torch.testing.assert_close(_all(tmp_path / "folder"), FIRST[:8])
    result = cs.convert(
        nets.Plain().eval(), torch.zeros(1, 3, 12, 12), forms=[cs.DepthwiseSeparable(rank=2)],
        calibration=str(tmp_path / "images.npy"), progress=False,
    )  # fmt: skip
    assert result.held_back[0].tensors()[0].shape[1:] == (3, 12, 12)


def test_options_prepare_images(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", PIXELS)
    shape = (1, 3, 20, 16)
    assert load(tmp_path / "images.npy", shape, size=10, limit=4).shape == (4, 3, 10, 10)
    flipped = load(tmp_path / "images.npy", shape, transform=lambda image: image.flip(0))
    torch.testing.assert_close(flipped, FIRST.flip(1))
    torch.testing.assert_close(load(tmp_path / "images.npy", (1, 20, 16, 3)), FIRST.permute(0, 2, 3, 1))
    assert _all(cs.Images(TensorDataset(FIRST), size=(8, 6))).shape == (80, 3, 8, 6)
    assert len(_all(cs.Images(Endless(), limit=70))) == 70
    whole = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    torch.testing.assert_close(_all(cs.Images(whole, mean=0.0)), FIRST)


@pytest.mark.parametrize("source", [3, True, b"images", {"x": FIRST}, "no/such/folder", Path("none.npy")])
def test_what_holds_no_images_is_refused_before_the_model_runs(source: Any) -> None:
    with pytest.raises(cs.errors.CalibrationError) as told:
        cs.convert(nets.Plain(), torch.zeros(7), calibration=source)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("options", [{"limit": 0}, {"mean": (0.1, 0.2)}, {"transform": lambda image: image / "x"}])
def test_options_that_do_not_fit_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(cs.errors.CalibrationError, match=next(iter(options))):
        _all(cs.Images(FIRST, **options))


def test_images_of_several_sizes_need_a_size() -> None:
    class Mixed(Pictures):
        def __getitem__(self, index: int) -> Any:
            return FIRST[index, :, : 10 + index % 2]

    with pytest.raises(cs.errors.CalibrationError, match="size="):
        _all(Mixed())
    assert _all(cs.Images(Mixed(), size=9)).shape == (80, 3, 9, 9)
