"""Pictures as users hold them: paths, Pillow images, arrays (H, W, C) of bytes; alone, in lists, with labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from convsurgeon.base.arrays import as_tensor
from convsurgeon.calibration.image_files import picture_pixels, read_picture, to_unit


def decode(value: Any, channels: int) -> list[Tensor] | None:
    """Return pictures as pixels (n, C, H, W) in [0, 1], a part for each; None for what a network may take as it is.

    Raises:
        CalibrationError: A path is not that of an image file.
    """
    if isinstance(value, str | os.PathLike):
        return [read_picture(Path(value), channels)]
    if _is_pillow(value):
        return [to_unit(picture_pixels(value, channels), "calibration").permute(2, 0, 1)[None]]
    if isinstance(value, tuple | list) and value:
        parts = [decode(one, channels) for one in value]
        return None if any(part is None for part in parts) else [one for part in parts for one in part or ()]
    if not hasattr(value, "__array__"):
        return None
    pixels = as_tensor(value)
    pixels = pixels[None] if pixels.dim() == 3 else pixels
    if pixels.is_floating_point() or pixels.dim() != 4 or not _is_last(pixels.shape, channels):
        return None
    return [to_unit(pixels.cpu().numpy(), "calibration").permute(0, 3, 1, 2)]


def in_batches(items: Iterable[Any], channels: int, size: int) -> Iterator[Any]:
    """Yield batches as they are, and single pictures, which lack the first dimension, as lists of a size."""
    waiting: list[Any] = []
    for item in items:
        if not is_single(item, channels):
            yield item
            continue
        waiting.append(item)
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def is_picture(value: Any, channels: int) -> bool:
    """Return whether a value may be one picture or several."""
    if isinstance(value, tuple | list) and value:
        return all(is_single(one, channels) for one in value)
    shape = _shape(value)
    return is_single(value, channels) or (len(shape) == 4 and channels in (shape[1], shape[3]))


def is_single(value: Any, channels: int) -> bool:
    """Return whether a value may be one picture: a path, a Pillow image, or an array of three dimensions."""
    shape = _shape(value)
    return (
        isinstance(value, str | os.PathLike)
        or _is_pillow(value)
        or (len(shape) == 3 and channels in (shape[0], shape[2]))
    )


def is_path(value: Any) -> bool:
    """Return whether a value is a path, or several."""
    values = value if isinstance(value, tuple | list) else [value]
    return all(isinstance(one, str | os.PathLike) for one in values)


def _is_last(shape: Sequence[int], channels: int) -> bool:
    return shape[3] == channels and shape[1] != channels


def _is_pillow(value: Any) -> bool:
    return hasattr(value, "convert") and hasattr(value, "mode")


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if hasattr(value, "__array__") and hasattr(value, "shape") else ()
