"""Whatever holds images is read, prepared as its options say, or refused in a line at once."""

from __future__ import annotations

import zipfile
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
from convsurgeon.calibration.dataset import images_in
from convsurgeon.graph.example import Example
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


@pytest.mark.parametrize(
    ("example", "source", "named"),
    [
        (FIRST[:1], FIRST.to_sparse(), "sparse"),
        (FIRST[:1], FIRST.to("meta"), "meta"),
        (FIRST[:1], torch.nested.as_nested_tensor(list(FIRST), layout=torch.jagged), "nested"),
        (FIRST[:1], [FIRST, FIRST.to_sparse()], "batch 1"),
        (FIRST[:1], FIRST.to(torch.complex64), "complex64"),
        (FIRST[:1], FIRST[:0], "no images"),
        (FIRST[:1], [FIRST[:0], FIRST[:0]], "no images"),
        (FIRST[:0], FIRST, "example"),
    ],
    ids=["sparse", "meta", "nested", "batch", "complex", "empty", "empty batches", "empty example"],
)
def test_what_holds_no_values_is_refused(example: torch.Tensor, source: object, named: str) -> None:
    with pytest.raises(cs.errors.CalibrationError, match=named):
        cs.convert(nets.Plain().eval(), example, calibration=source, forms=[cs.CP(rank=4)], progress=False)


def test_an_empty_batch_among_others_is_left_out() -> None:
    given = read([FIRST[:0], FIRST[:4], FIRST[:0], FIRST[4:8]], cs.Example.of(FIRST[:1]))
    assert sum(map(images_in, (*given.fitted, *given.held_back))) == 8


def test_a_model_without_values_takes_no_images() -> None:
    with torch.device("meta"):
        model = nets.Plain()
    with pytest.raises(cs.errors.CalibrationError, match="meta device"):
        cs.convert(model, FIRST[:1], calibration=FIRST, forms=[cs.CP(rank=4)], progress=False)


@pytest.mark.parametrize("name", ["images.zip", "images.pt"])
def test_zipped_files_are_no_arrays(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("a.jpg", b"\xff\xd8\xff")
    with pytest.raises(cs.errors.CalibrationError, match=name):
        load(tmp_path / name, (1, 3, 20, 16))


@pytest.mark.parametrize(
    "options",
    [
        *({"limit": limit} for limit in (0, "all", 2.5)),
        *({"size": size} for size in (0, "8x8", (8,), (8, -1), 2.5)),
        {"mean": (0.1, 0.2)},
        {"transform": lambda image: image / "x"},
    ],
)
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


def _png(folder: Path, count: int = 8) -> list[Path]:
    paths = [folder / f"{index}.png" for index in range(count)]
    for index, path in enumerate(paths):
        Image.fromarray(PIXELS[index]).save(path)
    return paths


PILLOWS = [Image.fromarray(one) for one in PIXELS]
HELD: dict[str, Any] = {
    "Pillow images": PILLOWS,
    "batches of Pillow images": [PILLOWS[:50], PILLOWS[50:]],
    "Pillow images and labels": [(one, 3) for one in PILLOWS],
    "batches of tuples of Pillow images and labels": [(tuple(PILLOWS), (3,) * 80)],
    "arrays of bytes, channels last": list(PIXELS),
    "one array of bytes, channels last": PIXELS,
    "a tensor of bytes, channels last": torch.from_numpy(PIXELS),
    "single tensors": list(FIRST),
    "single tensors with labels": list(zip(FIRST, range(80), strict=True)),
    "batches that are lists": [list(FIRST)],
    "labels first": [(torch.zeros(40), FIRST[:40]), (torch.zeros(40), FIRST[40:])],
    "dictionaries": [{"id": [1, 2], "label": torch.zeros(80), "pixel_values": FIRST}],
    "data set of dictionaries": [{"image": one, "label": 3} for one in FIRST],
    "a loader of pairs": DataLoader(TensorDataset(FIRST, FIRST + 1), batch_size=30),
}


@pytest.mark.parametrize("held", HELD)
def test_pictures_are_read_however_they_are_held(held: str) -> None:
    torch.testing.assert_close(_all(HELD[held]), FIRST)


def test_paths_of_pictures_are_read(tmp_path: Path) -> None:
    paths = _png(tmp_path)
    torch.testing.assert_close(_all(paths), FIRST[:8])
    torch.testing.assert_close(_all([[str(one) for one in paths[:5]], [str(one) for one in paths[5:]]]), FIRST[:8])
    torch.testing.assert_close(read(paths[3], LIKE).fitted[0].tensors()[0], FIRST[3:4])
    with pytest.raises(cs.errors.CalibrationError, match=r"none\.png"):
        _all([paths[0], "none.png"])


def test_pictures_of_other_sizes_are_brought_to_the_example() -> None:
    assert _all([Image.fromarray(PIXELS[0, :10]), PILLOWS[0]]).shape == (2, 3, 20, 16)


def test_single_grey_images_are_no_batch_of_rows() -> None:
    grey = cs.Example.of(torch.zeros(1, 1, 20, 16))
    data = read(FIRST[:, 0], grey)
    assert torch.equal(torch.cat([one.tensors()[0] for one in (*data.fitted, *data.held_back)])[:, 0], FIRST[:, 0])


def test_what_a_system_leaves_in_a_folder_is_no_picture(tmp_path: Path) -> None:
    _png(tmp_path)
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "__MACOSX/._a.jpg", "@eaDir/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert not cs.Images(tmp_path).notes
    (tmp_path / "labels.csv").write_text("a,b")
    torch.testing.assert_close(_all(tmp_path), FIRST[:8])
    (note,) = cs.Images(tmp_path).notes
    assert "1 other file" in note
    assert ".csv" in note


def test_a_mean_of_bytes_is_refused_and_one_of_pixels_taken() -> None:
    with pytest.raises(cs.errors.CalibrationError, match="mean: 124"):
        read(cs.Images(Pictures(), mean=(124, 116, 104), std=(58, 57, 57)), LIKE)
    torch.testing.assert_close(_all(cs.Images(Pictures(), mean=0.5)), FIRST - 0.5)


def test_how_pictures_are_prepared_is_said(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "one.png")
    said = cs.Images(str(tmp_path), mean=0.5, std=0.25).describe(LIKE)
    assert all(words in said for words in (tmp_path.name, "RGB", "20x16", "(pixel - 0.5) / 0.25"))
    assert not cs.Images(FIRST).describe(LIKE)


@pytest.mark.parametrize(
    ("channels", "options"),
    [(3, {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}), (3, {}), (1, {"mean": 0.5}), (3, {"channels_last": True})],
)
def test_code_that_reads_a_picture_makes_what_calibration_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    waves = np.sin(np.linspace(0, 9, 30)[:, None, None] + np.linspace(0, 7, 40)[:, None] + np.arange(3))
    Image.fromarray(np.uint8(127 + 120 * waves)).save("photo.png")
    shape = (1, 20, 24, 3) if options.get("channels_last") else (1, channels, 20, 24)
    example = Example.of(torch.zeros(shape))
    images, names = cs.Images(tmp_path, **options), {"np": np, "session": Session()}
    code = images.reading_code(example, 'a "name"').replace("photo.jpg", "photo.png")
    exec(code, names)
    (wanted,) = (batch.tensors()[0] for batch in images.batches(example))
    (found,) = names["session"].given.items()
    assert found[0] == 'a "name"'
    assert found[1].dtype == np.float32
    assert found[1].shape == tuple(wanted.shape)
    assert np.abs(found[1] - wanted.numpy()).max() < 0.01 / min(np.ravel(options.get("std", 1.0)))
    assert not cs.Images(tmp_path, transform=torch.flip).reading_code(example, "x")
    assert not cs.Images(torch.zeros(2, channels, 20, 24)).reading_code(example, "x")


class Session:
    """What keeps its inputs."""

    def run(self, names: None, given: dict[str, Any]) -> list[Any]:
        self.given = given
        return []
