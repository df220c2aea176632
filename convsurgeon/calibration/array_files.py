"""Arrays in `.npy` and `.npz` files: an `.npy` file is mapped, an `.npz` file is read whole and may not be large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from convsurgeon.base.arrays import Array
from convsurgeon.base.errors import CalibrationError, first_line, reason

_MOST_NPZ_BYTES = 1 << 30


def read_array(source: Path) -> Array:
    """Return the array of images in a file; of an `.npz` file the one with most elements.

    Raises:
        CalibrationError: The file cannot be read, is damaged or too large, or holds no array of 3 or 4 dimensions.
    """
    with _errors(source):
        found = np.load(source, mmap_mode="r", allow_pickle=False)
        arrays = [found] if isinstance(found, np.ndarray) else list(_unpacked(found, source).values())
    pictures = [array for array in arrays if array.ndim in (3, 4) and array.dtype.kind in "fiub"]
    if not pictures:
        shapes = ", ".join(f"{array.dtype} {array.shape}" for array in arrays) or "nothing"
        raise CalibrationError(f"{source}: holds {shapes}; expected numbers of shape (N, H, W, C)")
    return max(pictures, key=lambda array: array.size)


def read_arrays(source: Path) -> dict[str, Array]:
    """Return every array of an `.npz` file by its name.

    Raises:
        CalibrationError: The file cannot be read, is damaged or too large.
    """
    with _errors(source):
        return _unpacked(np.load(source, allow_pickle=False), source)


def _unpacked(archive: Any, source: Path) -> dict[str, Array]:
    size = sum(entry.file_size for entry in archive.zip.infolist())
    if size > _MOST_NPZ_BYTES:
        raise CalibrationError(
            f"{source}: grows to {size / 1e9:,.1f} GB; an .npz is read whole: save the images as .npy, which is mapped"
        )
    with archive:
        return {name: archive[name] for name in archive.files}


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
