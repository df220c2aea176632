"""Pictures from files, as tensors in [0, 1]: a folder of image files (needs Pillow), an `.npy` or an `.npz` file.

An `.npy` file is mapped; an `.npz` file is read whole and may not be large.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from convsurgeon.base.arrays import Array
from convsurgeon.base.errors import CalibrationError, first_line, reason

_PART_VALUES = 1 << 25
"""Values of an array that are converted at once."""
_MOST_VALUES = 3 * 89_478_485
"""Of one picture: as many pixels as Pillow accepts."""
_MOST_NPZ_BYTES = 1 << 30
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}
"""What operating systems leave in folders, beside names that begin with a dot."""


def read_folder(folder: Path, channels: int, limit: int) -> Iterator[Tensor]:
    """Yield each picture of a folder as (1, C, H, W); of more than `limit` those at even distances.

    Raises:
        CalibrationError: There are no pictures, one is damaged, or the network takes neither 1 nor 3 channels.
    """
    files = _own_files(folder)
    pictures = [file for file in files if is_picture_file(file)]
    if not pictures:
        raise CalibrationError(f"{folder}: holds no images ({', '.join(sorted(_SUFFIXES))})")
    for index in spread(len(pictures), limit):
        yield read_picture(pictures[index], channels)


def describe_skipped(folder: Path) -> str:
    """Return what of a folder is not read, in a sentence; empty where all of it is, but for what the system left."""
    others = [file for file in _own_files(folder) if not is_picture_file(file)]
    kinds = sorted({file.suffix.lower() or "without a suffix" for file in others})
    if not others:
        return ""
    few = f"{', '.join(kinds[:4])}{', ...' if kinds[4:] else ''}"
    return f"{len(others)} other file{'s' if len(others) > 1 else ''} in {folder} ({few}) were not read."


def _own_files(folder: Path) -> list[Path]:
    """Return the files that the user put into a folder, in order."""

    def is_own(file: Path) -> bool:
        names = [name.lower() for name in file.relative_to(folder).parts]
        return not any(name.startswith(".") or name in _SYSTEM_NAMES for name in names)

    return sorted(file for file in folder.rglob("*") if is_own(file) and file.is_file())


def is_picture_file(path: Path) -> bool:
    """Return whether a file's name is that of a picture."""
    return path.suffix.lower() in _SUFFIXES


def read_picture(file: Path, channels: int) -> Tensor:
    """Return the picture in a file as (1, C, H, W).

    Raises:
        CalibrationError: It is damaged, or the network takes neither 1 nor 3 channels.
    """
    if channels not in (1, 3):
        raise CalibrationError(
            f"{file}: image files have 1 or 3 channels, the network takes {channels}; pass an .npy file"
        )
    if not file.is_file():
        raise CalibrationError(f"{file}: does not exist, or is no file; pass the path of an image")
    try:
        pillow = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise CalibrationError(f"{file}: image files need Pillow; pip install pillow, or pass .npy") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            image = pillow.open(file)
        with image:
            pixels = picture_pixels(image, channels)
    except Exception as error:  # Pillow raises what its decoders raise
        raise CalibrationError(f"{file}: is not an image ({error}); remove it") from error
    return to_unit(pixels, file).permute(2, 0, 1)[None]


def read_array_file(source: Path, shape: Sequence[int], limit: int) -> Iterator[Tensor]:
    """Yield the pictures of an array file in parts (n, C, H, W); of more than `limit` those at even distances.

    The file holds (N, H, W), (N, H, W, C) or (N, C, H, W); `shape` is the channels, height and width that the network
    takes.

    Raises:
        CalibrationError: The file cannot be read, or holds something else.
    """
    array = _read_array(source)
    if 0 in array.shape:
        raise CalibrationError(f"{source}: holds an array of shape {array.shape}, which is empty; pass images")
    if math.prod(array.shape[1:]) > _MOST_VALUES:
        raise CalibrationError(f"{source}: holds images of {array.shape[1:]}, which are too large; scale them down")
    each = max(1, _PART_VALUES // math.prod(array.shape[1:]))
    rows = spread(len(array), limit)
    for start in range(0, len(rows), each):
        part = np.asarray(array[rows[start : start + each]])
        images = to_unit(part[..., None] if part.ndim == 3 else part, source)
        if images.shape[1] != shape[0] or (images.shape[3] == shape[0] and images.shape[1:] != tuple(shape)):
            images = images.permute(0, 3, 1, 2)
        if images.shape[1] != shape[0]:
            raise CalibrationError(
                f"{source}: holds images of shape {array.shape[1:]}, the network takes {shape[0]} channels"
            )
        yield images


def read_inputs(source: Path, names: Sequence[str], limit: int) -> list[tuple[Tensor, ...]]:
    """Return what a network of several inputs takes from an `.npz` file, unchanged, in batches of 64.

    The file holds one array (N, ...) for each input under its name, or as many arrays in the order of `forward`; of
    more rows than `limit` those at even distances are read.

    Raises:
        CalibrationError: There is no such file, or not one array of equal length for every input.
    """
    if source.suffix != ".npz":
        raise CalibrationError(f"{source}: the network takes {len(names)} inputs; pass an .npz with an array for each")
    arrays = _read_arrays(source)
    by_name = set(names) <= set(arrays)
    if not by_name and len(arrays) != len(names):
        raise CalibrationError(f"{source}: holds {', '.join(arrays)}; the network takes {', '.join(names)}")
    wanted = [arrays[name] for name in names] if by_name else list(arrays.values())
    counts = {len(array) if array.ndim and array.dtype.kind in "fiub" else 0 for array in wanted}
    if len(counts) != 1 or counts == {0}:
        shapes = ", ".join(f"{array.dtype} {array.shape}" for array in wanted)
        raise CalibrationError(f"{source}: holds {shapes}; expected numbers, as many rows in each")
    rows = spread(counts.pop(), limit)
    tensors = [torch.from_numpy(np.ascontiguousarray(array[rows])) for array in wanted]
    return list(zip(*(tensor.split(64) for tensor in tensors), strict=True))


def picture_pixels(image: Any, channels: int) -> Array:
    """Return a Pillow image's pixels (H, W, C) in their own bit depth, which Pillow's conversions would cut at 255."""
    if image.mode[0] in "IF":  # "I;16", "I", "F": one channel
        return np.repeat(np.asarray(image)[..., None], channels, axis=2)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[..., None] if channels == 1 else pixels


def to_unit(pixels: Array, source: object) -> Tensor:
    """Return pixels as float32, whole numbers divided by the largest of their bit depth.

    Wide and signed whole numbers hold pictures of 8 or 16 bits, by the largest value in them.

    Raises:
        CalibrationError: Whole numbers below 0 or beyond 16 bits.
    """
    if pixels.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    most = {"bool": 1, "uint8": 255, "uint16": 65535}.get(pixels.dtype.name)
    if most is None:
        low, high = (int(pixels.min()), int(pixels.max())) if pixels.size else (0, 0)
        if low < 0 or high > 65535:
            raise CalibrationError(
                f"{source}: holds {pixels.dtype} from {low} to {high}, which is not a picture of 8 or 16 bits; "
                "pass floating-point numbers"
            )
        most = 255 if high <= 255 else 65535
    return torch.from_numpy(np.divide(pixels, most, dtype=np.float32))


def cover(images: Tensor, height: int, width: int) -> Tensor:
    """Return images (N, C, H, W) scaled until they cover a size, and cut to their middle."""
    if images.shape[2:] == (height, width):
        return images
    scale = max(height / images.shape[2], width / images.shape[3])
    larger = [max(height, round(images.shape[2] * scale)), max(width, round(images.shape[3] * scale))]
    scaled = F.interpolate(images, size=larger, mode="bilinear", antialias=True, align_corners=False)
    top, left = (larger[0] - height) // 2, (larger[1] - width) // 2
    return scaled[:, :, top : top + height, left : left + width].contiguous()


def spread(count: int, limit: int) -> list[int]:
    """Return at most `limit` of `count` indices, at even distances."""
    taken = min(count, limit)
    return [index * count // taken for index in range(taken)]


def _read_array(source: Path) -> Array:
    """Return the array of images in a file; of an `.npz` file the one with most elements."""
    with _errors(source):
        found = np.load(source, mmap_mode="r", allow_pickle=False)
        arrays = [found] if isinstance(found, np.ndarray) else list(_unpacked(found, source).values())
    pictures = [array for array in arrays if array.ndim in (3, 4) and array.dtype.kind in "fiub"]
    if not pictures:
        shapes = ", ".join(f"{array.dtype} {array.shape}" for array in arrays) or "nothing"
        raise CalibrationError(f"{source}: holds {shapes}; expected numbers of shape (N, H, W, C)")
    return max(pictures, key=lambda array: array.size)


def _read_arrays(source: Path) -> dict[str, Array]:
    """Return every array of an `.npz` file by its name."""
    with _errors(source):
        return _unpacked(np.load(source, allow_pickle=False), source)


def _unpacked(archive: Any, source: Path) -> dict[str, Array]:
    size = sum(entry.file_size for entry in archive.zip.infolist())
    if size > _MOST_NPZ_BYTES:
        raise CalibrationError(
            f"{source}: grows to {size / 1e9:,.1f} GB; an .npz is read whole: save the images as .npy, which is mapped"
        )
    with archive:
        found = {name: archive[name] for name in archive.files}
    if not all(isinstance(array, np.ndarray) for array in found.values()):
        raise ValueError("a zip of other files; unpack it")
    return found


@contextmanager
def _errors(source: Path) -> Iterator[None]:
    """Turn what fails while a file is read into a `CalibrationError`."""
    if source.exists() and not source.is_file():
        raise CalibrationError(f"{source}: is a device or a pipe; pass a folder, .npy or .npz")
    try:
        yield
    except CalibrationError:
        raise
    except OSError as error:
        raise CalibrationError(f"{source}: cannot be read ({reason(error)}); pass a folder, .npy or .npz") from error
    except Exception as error:  # zip and header errors of many kinds
        raise CalibrationError(
            f"{source}: is not an array file ({first_line(error)}); pass a folder of images, .npy or .npz"
        ) from error
