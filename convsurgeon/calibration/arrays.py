"""Arrays of images in `.npy` and `.npz` files, of which no more is held than is asked for.

An `.npy` file is mapped. Of an `.npz` a small array is read whole, for its checksum; a large one goes by as a
stream, from which the images asked for are kept. One that would grow beyond all measure is not opened at all.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from convsurgeon.base.errors import CalibrationError, first_line, reason

_SMALL_BYTES = 1 << 28
_BOMB_BYTES, _BOMB_TIMES = 1 << 30, 100
"""More than this, and more than so many times what the file holds of it, is no image of anything."""
_BLOCK_BYTES = 1 << 20
Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Images:
    """An array that is open: its shape and dtype, and what reads some of its images, by rising numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    images: Callable[[Sequence[int]], Values]


@contextmanager
def opened(source: Path) -> Iterator[Images]:
    """The array of images with most elements in a file.

    Raises:
        CalibrationError: there is none, or the file cannot be read, is none, is damaged or is a bomb.
    """
    with _readable(source):
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                yield _zipped(archive, source)
        else:
            yield _mapped(source)


def by_name(source: Path) -> dict[str, Values]:
    """Every array of an `.npz`, whole.

    Raises:
        CalibrationError: as `opened`.
    """
    found = {}
    with _readable(source), zipfile.ZipFile(source) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                shape, _, dtype = _header(file)
            _check_honest(entry, math.prod(shape) * dtype.itemsize, source)
            with archive.open(entry) as file:
                found[entry.filename.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    return found


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    """Turns what fails while a file is read into an error of ours."""
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
            f"{source}: is no array file ({first_line(error)}); pass a folder of images, .npy or .npz"
        ) from error


def _mapped(source: Path) -> Images:
    with source.open("rb") as file:
        shape, _, dtype = _header(file)
    _wanted([(shape, dtype)], source)
    if 0 in shape:  # nothing to map
        return _held(np.empty(shape, dtype))
    return _held(np.load(source, mmap_mode="r", allow_pickle=False))


def _zipped(archive: zipfile.ZipFile, source: Path) -> Images:
    found = []
    for entry in archive.infolist():
        with archive.open(entry) as file:
            shape, fortran, dtype = _header(file)
        if len(shape) in (3, 4) and dtype.kind != "O":
            found.append((entry, shape, fortran, dtype))
    _wanted([(shape, dtype) for _, shape, _, dtype in found], source)
    entry, shape, fortran, dtype = max(found, key=lambda one: math.prod(one[1]))
    size = math.prod(shape) * dtype.itemsize
    _check_honest(entry, size, source)
    if size <= _SMALL_BYTES:
        with archive.open(entry) as file:
            return _held(np.lib.format.read_array(file, allow_pickle=False))
    if fortran:
        raise CalibrationError(f"{source}: is in Fortran order and large; save numpy.ascontiguousarray of it")
    return Images(shape, dtype, _Stream(archive.open(entry), shape, dtype).take)


def _check_honest(entry: zipfile.ZipInfo, size: int, source: Path) -> None:
    if size > _BOMB_BYTES and size > _BOMB_TIMES * entry.compress_size:
        raise CalibrationError(
            f"{source}: {entry.compress_size / 1e6:,.1f} MB in it grow to {size / 1e9:,.1f} GB, which no images do; "
            "save them with numpy.save where they are honest"
        )


def _held(array: Values) -> Images:
    def take(numbers: Sequence[int]) -> Values:
        return np.asarray(array[list(numbers)])

    return Images(array.shape, array.dtype, take)


class _Stream:
    """Reads images of rising numbers out of a stream, letting the others go by."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        _header(file)
        self._file, self._shape, self._dtype, self._next = file, shape[1:], dtype, 0

    def take(self, numbers: Sequence[int]) -> Values:
        each = math.prod(self._shape) * self._dtype.itemsize
        taken = np.empty((len(numbers), *self._shape), self._dtype)
        for place, number in enumerate(numbers):
            left = (number - self._next) * each
            while left > 0:
                left -= len(self._read(min(left, _BLOCK_BYTES)))
            taken[place] = np.frombuffer(self._read(each), self._dtype).reshape(self._shape)
            self._next = number + 1
        return taken

    def _read(self, size: int) -> bytes:
        found = self._file.read(size)
        if len(found) != size:
            raise ValueError("it ends too early")
        return found


def _wanted(found: Sequence[tuple[tuple[int, ...], np.dtype[Any]]], source: Path) -> None:
    if not any(len(shape) in (3, 4) and dtype.kind != "O" for shape, dtype in found):
        raise CalibrationError(f"{source}: holds no array of images; expected one of shape (N, H, W, C)")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and dtype, by numpy's own reading."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its header is of version {version}")
    shape, fortran, dtype = read(file)
    return tuple(shape), fortran, dtype
