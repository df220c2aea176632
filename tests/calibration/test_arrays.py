"""Files of images that are larger inside than out: memory stays bounded, and bombs are a line."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import convsurgeon as cs
from tests.calibration.loading import load

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (1, 3, 8, 8)
PEAK = """
import sys
from pathlib import Path
from convsurgeon.base.errors import CalibrationError
from tests.calibration.loading import load
def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024
before = peak()
try:
    print(tuple(load(sys.argv[1], (1, 3, 8, 8), limit=4).shape))
except CalibrationError as error:
    print(error)
print(peak() - before)
"""


def _peak(path: Path) -> tuple[str, int]:
    """What reading four images says, and the megabytes that it took."""
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True, cwd=ROOT)
    said, peak = done.stdout.splitlines()
    return said, int(peak)


def _header(shape: tuple[int, ...]) -> bytes:
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(held, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return held.getvalue()


def _npz(path: Path, shape: tuple[int, ...], blocks: int, level: int, block: bytes) -> Path:
    """An array of a block repeated, written without holding it."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive,
        archive.open("images.npy", "w", force_zip64=True) as file,
    ):
        file.write(_header(shape))
        for _ in range(blocks):
            file.write(block)
    return path


def test_an_npz_that_grows_beyond_memory_is_a_line(tmp_path: Path) -> None:
    """1.2 GB of zeros in 5 MB: nothing of them is inflated."""
    path = _npz(tmp_path / "bomb.npz", (1536, 3, 512, 512), 1152, 1, bytes(1 << 20))
    said, megabytes = _peak(path)
    assert "bomb.npz: grows to 1.2 GB" in said
    assert megabytes < 100


def test_a_large_npy_is_mapped(tmp_path: Path) -> None:
    plain = tmp_path / "large.npy"
    with plain.open("wb") as file:
        file.write(_header((4000, 3, 512, 512)))
        file.truncate(file.tell() + 4000 * 3 * 512 * 512)  # 3 GB of nothing, of which nothing is read
    said, megabytes = _peak(plain)
    assert said == "(4, 3, 8, 8)"
    assert megabytes < 50


def test_an_npz_gives_what_its_largest_array_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 12, 9, 3), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", small=pixels[:2], images=pixels, labels=np.arange(37))
    np.save(tmp_path / "a.npy", pixels)
    whole = load(tmp_path / "a.npy", SHAPE, limit=10)
    monkeypatch.setattr("convsurgeon.calibration.image_files._PART_VALUES", 700)
    assert torch.equal(load(tmp_path / "a.npz", SHAPE, limit=10), whole)


def _png(path: Path, width: int, height: int) -> Path:
    """A grey PNG of one colour, written without holding it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def test_an_image_of_169_megapixels_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    image = _png(tmp_path / "photos" / "bomb.png", 13_000, 13_000)
    assert image.stat().st_size < 200_000
    said, megabytes = _peak(tmp_path / "photos")
    assert "bomb.png: is not an image (Image size (169000000 pixels) exceeds limit of 89478485" in said
    assert megabytes < 100


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 3, 0, 8), "empty"),
        ((0, 3, 8, 8), "empty"),
        ((1 << 40, 3, 8, 8), "is not an array file"),
        ((1, 3, 1 << 20, 1 << 20), "is not an array file"),
        ((3,), "holds uint8 .3,."),
    ],
)
def test_absurd_arrays_are_a_line(shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(_header(shape) + bytes(100 if 0 not in shape else 0))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", (tmp_path / "a.npy").read_bytes())
    for name in ("a.npy", "a.npz"):
        with pytest.raises(cs.errors.CalibrationError, match=message if name == "a.npy" else "a.npz: ") as told:
            load(tmp_path / name, SHAPE)
        assert "\n" not in str(told.value)


def test_one_image_too_large_for_any_network_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        file.write(_header((2, 3, 20_000, 20_000)))
        file.truncate(file.tell() + 6 * 20_000**2)
    assert _peak(path)[0].endswith("holds images of (3, 20000, 20000), which are too large; scale them down")


def test_other_byte_orders_and_widths_are_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).standard_normal((3, 8, 8, 3)).astype(np.float32)
    for dtype in (">f4", ">f8", np.longdouble, np.float16):
        np.save(tmp_path / "a.npy", pixels.astype(dtype))
        found = load(tmp_path / "a.npy", SHAPE)
        torch.testing.assert_close(found, torch.from_numpy(pixels).permute(0, 3, 1, 2), atol=1e-2, rtol=1e-2)
