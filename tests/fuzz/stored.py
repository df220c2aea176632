"""What runs keep and others send: measurements, arrays and images, checkpoints; damaged, they are a line."""

from __future__ import annotations

import copy
import functools
import io
import json
import random
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import convsurgeon as cs
from convsurgeon.runtime.latencies import predict
from convsurgeon.runtime.table import LatencyTable
from tests.calibration.loading import load
from tests.fuzz.files import DEVICE, MEMORY, damaged
from tests.fuzz.texts import captured, mutate


def device(rng: random.Random) -> None:
    """Measurements with wrong parts are refused by their place, or are a table that prints and writes itself."""
    values: Any = copy.deepcopy(DEVICE)
    for _ in range(rng.randint(1, 3)):
        values = mutate(rng, values)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder) / "device.json"
        path.write_text(json.dumps(values))
        if rng.random() < 0.2:
            path.write_bytes(damaged(rng, path.read_bytes()))
        try:
            table = LatencyTable.load(path)
            table.save(path, overwrite=True)
            if rng.random() < 0.5:
                path.write_text(json.dumps(mutate(rng, json.loads(path.read_text()))))
                table = LatencyTable.load(path)
        except cs.errors.LatencyError as error:
            assert "\n" not in str(error)
            return
    assert str(table)
    assert table.total_ms > 0
    made = cs.plan(captured().model, captured().example, forms=[cs.DepthwiseSeparable(rank=1)], allow_growth=True)
    assert not predict(table, made) >= 1e9  # nan where a form was not measured


@functools.cache
def _pictures() -> tuple[tuple[str, bytes], ...]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 12, 3), np.uint8)
    files: list[tuple[str, bytes]] = []
    for name, save in (("a.npy", np.save), ("a.npz", np.savez), ("b.npz", np.savez_compressed)):
        held = io.BytesIO()
        save(held, pixels)
        files.append((name, held.getvalue()))
    for name in ("a.png", "a.jpg", "a.bmp", "a.tif", "a.webp", "a.ppm"):
        held = io.BytesIO()
        kind = {"jpg": "jpeg", "tif": "tiff"}.get(name[2:], name[2:])
        Image.fromarray(pixels[0]).save(held, kind)
        files.append((name, held.getvalue()))
    return tuple(files)


def images(rng: random.Random) -> None:
    """A file of images is read as images of the wanted shape, or is refused in a line."""
    name, data = rng.choice(_pictures())
    data = _of_shape(rng) if name == "a.npy" and rng.random() < 0.5 else damaged(rng, data)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / name
        path.write_bytes(data)
        shape = (1, rng.choice((1, 3)), rng.choice((1, 8, 40)), 8)
        try:
            found = load(path if name[2:].startswith("np") else folder, shape, limit=rng.choice((1, 2, 10**30)))
        except cs.errors.CalibrationError as error:
            assert "\n" not in str(error)
            return
    assert found.shape[1:] == shape[1:]


def _of_shape(rng: random.Random) -> bytes:
    """An array whose header says something, with a few values behind it."""
    shape = tuple(rng.choice((0, 1, 3, 8, 10**5, 1 << 62, -1)) for _ in range(rng.choice((0, 2, 3, 4, 4, 4, 5))))
    kind = rng.choice(("|u1", "<f4", ">f4", "<f2", "<i8", "|b1", "|O", "<c8", "<U3", "<M8[s]", "<f8"))
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(held, {"descr": kind, "fortran_order": rng.random() < 0.3, "shape": shape})
    return held.getvalue() + bytes(rng.choice((0, 24, 1536)))


RECIPE = cs.Recipe(epochs=1, batch_size=8, lr=1e-3)
IMAGES = 16


@functools.cache
def _run() -> tuple[cs.Result, bytes]:
    """A finished recovery, and its checkpoint."""
    torch.manual_seed(0)
    batch = torch.randn(IMAGES, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten()).eval()
    made = cs.convert(net, batch[:1], forms=[cs.DepthwiseSeparable(rank=1)], calibration=False, progress=False)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        cs.recover(made, batch, recipe=RECIPE, run=folder, progress=False)
        return made, (Path(folder) / "last.pt").read_bytes()


def checkpoint(rng: random.Random) -> None:
    """A damaged checkpoint is refused in a line; one that can be read ends the run as it should."""
    result, data = _run()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder) / "last.pt"
        if rng.random() < 0.6:
            path.write_bytes(damaged(rng, data))
        else:
            with zipfile.ZipFile(io.BytesIO(data)) as right, zipfile.ZipFile(path, "w") as wrong:
                for entry in right.infolist():
                    if rng.random() < 0.98:
                        wrong.writestr(entry.filename, right.read(entry))
        try:
            images = torch.randn(IMAGES, 3, 8, 8)
            better = cs.recover(result, images, recipe=RECIPE, run=folder, resume=True, progress=False)
        except cs.ConvSurgeonError as error:
            assert "\n" not in str(error)
            return
    str(better.report)


def prepare() -> None:
    """What all cases share, made before the workers are forked."""
    _run()
