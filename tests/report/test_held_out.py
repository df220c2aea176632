"""Held-out images on the page: the worst and the median of maps, and the decisions that changed."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import convsurgeon as cs
from convsurgeon.base.arrays import Array
from convsurgeon.base.words import WORDS
from convsurgeon.report.held_out import HeldOut, compare_images
from convsurgeon.report.png import draw_classes, draw_marks, draw_values
from tests.report.bundles import make_bundle, timing


def _file(folder: Path, name: str, weight: Array, bias: list[float], flat: bool) -> Path:
    """A 1x1 conv of one channel, with its mean over places behind it if it is flat."""
    net = nn.Sequential(nn.Conv2d(1, len(weight), 1), *([nn.AdaptiveAvgPool2d(1), nn.Flatten()] if flat else []))
    net[0].weight.data[:] = torch.from_numpy(weight).float().reshape(-1, 1, 1, 1)
    net[0].bias.data[:] = torch.tensor(bias)
    place = folder / name
    cs.onnx.export(net.eval(), torch.zeros(1, 1, 4, 4), place)
    return place


def _feeds(path: Path, values: list[float]) -> list[dict[str, Array]]:
    name = onnx.load(path).graph.input[0].name
    ramp = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    return [{name: np.float32(value) * ramp} for value in values]


def _compared(folder: Path, one: list[float], two: list[float], values: list[float], **how: bool) -> HeldOut | None:
    """Two networks that differ in their biases."""
    weight, flat = np.linspace(1, -1, len(one)) if one[1:] else np.ones(1), how.pop("flat")
    files = [_file(folder, f"{index}.onnx", weight, bias, flat) for index, bias in enumerate((one, two))]
    return compare_images(*files, _feeds(files[0], values), **how)


def _pixels(picture: str) -> Array:
    image = pytest.importorskip("PIL.Image")
    return np.asarray(image.open(io.BytesIO(base64.b64decode(picture.split(",")[1]))))


def test_changed_decisions_are_listed(tmp_path: Path) -> None:
    found = _compared(tmp_path, [0.0, 0.5], [0.0, 1.5], [1.0, 0.1, 1.2], flat=True, maps_decide=False)
    assert found is not None
    assert found.lead.startswith("2 of 3 decisions changed")
    assert [row.title for row in found.rows] == [
        "Image 0: class 0 before, class 1 now",
        "Image 2: class 0 before, class 1 now",
    ]
    assert all(name == "the image" for row in found.rows for name, _ in row.pictures)


def test_the_worst_and_the_median_map_are_drawn(tmp_path: Path) -> None:
    found = _compared(tmp_path, [0.0, 0.5], [0.0, 0.9], [0.0, 0.1, 1.0], flat=False, maps_decide=True)
    assert found is not None
    worst, median = found.rows
    shares = [float(re.findall(r"([\d.]+)%", row.title)[0]) for row in found.rows]
    assert shares[0] > shares[1] == 0.0
    assert [name for name, _ in worst.pictures] == ["input", "original", "converted", "decides otherwise"]
    marked = (_pixels(worst.pictures[3][1])[..., 1] < 100).mean()
    assert 100 * marked == pytest.approx(shares[0], abs=0.01)
    assert (_pixels(median.pictures[3][1])[..., 1] < 100).sum() == 0


def test_images_share_one_scale_and_the_difference_says_its_own(tmp_path: Path) -> None:
    found = _compared(tmp_path, [0.0], [0.1], [1.0, 0.5], flat=False, maps_decide=True)
    assert found is not None
    pictures = dict(found.rows[0].pictures)
    assert "difference, 4 times" in pictures  # of a range of 0.5, where it is 0.1
    assert found.rows[0].title.startswith("Worst of 2 images")
    assert (_pixels(pictures["converted"]) >= _pixels(pictures["original"])).all()
    assert _pixels(pictures["difference, 4 times"]).min() == 204


def test_vectors_of_values_and_other_sizes_are_not_shown(tmp_path: Path) -> None:
    assert _compared(tmp_path, [0.0] * 4, [0.1] * 4, [1.0], flat=False, maps_decide=False) is None
    one = _file(tmp_path, "flat.onnx", np.ones(2), [0.0, 0.0], True)
    other = _file(tmp_path, "map.onnx", np.ones(2), [0.0, 0.0], False)
    assert compare_images(one, other, _feeds(one, [1.0]), maps_decide=False) is None


def test_pictures_hold_what_was_drawn() -> None:
    ramp = np.linspace(0, 1, 600, dtype=np.float32).reshape(1, 1, 600)
    assert _pixels(draw_values(ramp, 0, 1)).shape == (1, 200, 3)  # thinned out
    grey = _pixels(draw_values(np.array([[[0.0, 0.5, 2.0]]]), 0, 1))
    assert grey[0, :, 0].tolist() == [0, 128, 255]
    classes = _pixels(draw_classes(np.array([[0, 1], [1, 0]])))
    assert (classes[0, 0] == classes[1, 1]).all()
    assert (classes[0, 0] != classes[0, 1]).any()
    assert _pixels(draw_marks(np.array([[True, False]])))[0, 0].tolist() == [220, 50, 40]


def test_every_column_of_the_page_is_explained() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    report = cs.convert(
        net, torch.randn(4, 3, 8, 8), forms=[cs.CP(rank=2)], calibration=torch.randn(20, 3, 8, 8)
    ).report
    made = make_bundle(timing(model=3.0, model_int8=2.0))
    assert made.bench is not None
    tables = (made.files, made.parity, made.providers, made.bench.files, made.quantized[0].table, report.tried)
    columns = {name for table in (*tables, *report.tables) for name in table.headers}
    plain = {
        *("", "file", "layer", "module", "reason", "note", "tensor", "shape", "elements", "before", "after", "ratio"),
        *("provider", "weights", "kept", "taken", "in", "output", "becomes"),
    }
    assert columns <= plain | set(WORDS)


def test_empty_columns_go() -> None:
    made = make_bundle(timing(model=3.0), top1=None)
    assert "same_top1" in made.files.headers
    assert "same_top1" not in made.files.filled().headers
