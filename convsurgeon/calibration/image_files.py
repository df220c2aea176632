"""Images for calibration: from an `.npy` or `.npz` array, or from a folder of image files (needs Pillow)."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from convsurgeon.base.errors import CalibrationError
from convsurgeon.calibration.arrays import by_name, opened
from convsurgeon.calibration.bit_depth import unit
from convsurgeon.calibration.dataset import check_limit
from convsurgeon.calibration.value_range import stated

_PART_VALUES = 1 << 25
"""Values of an array that are brought into shape at once."""
_MOST_VALUES = 3 * 89_478_485
"""Of one image: as many pixels as Pillow takes for honest."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def load_images(
    path: str | Path, shape: Sequence[int], mean: Sequence[float] = (), std: Sequence[float] = (), limit: int = 1024
) -> Tensor:
    """Reads images as a network of input `shape` (N, C, H, W) takes them.

    Arrays (N, H, W, C), (N, H, W) or (N, C, H, W) and image files of whole numbers are brought into [0, 1] by their bit
    depth (see `depth`); floating-point numbers are taken as they are, in arrays and in files. Then `mean` is subtracted
    and `std` divided by, channel by channel. Other sizes are scaled so that they cover H x W and the middle is cut out.

    Args:
        path: a folder of images, or an array file; of an `.npz` the array of images with most elements.
        shape: of the network's input; N is not looked at.
        mean: one per channel, or one for all, or none.
        std: likewise.
        limit: images to read; of more they are taken at even distances.

    Raises:
        CalibrationError: nothing there, or no images, or of another number of channels; or a scale that is none.
    """
    source = Path(path)
    if len(shape) != 4:
        raise CalibrationError(f"{source}: the input has shape {'x'.join(map(str, shape))}; images need 1xCxHxW")
    scale = stated(mean, std, shape[1])
    return scale.apply(_from_folder(source, shape, limit) if source.is_dir() else _from_array(source, shape, limit))


def load_inputs(path: str | Path, names: Sequence[str], limit: int = 1024) -> list[tuple[Tensor, ...]]:
    """Reads what a network of several inputs takes from an `.npz` file, as it is, in batches of 64.

    Args:
        path: the file; one array (N, ...) per input, under the input's name, or as many arrays in the inputs' order.
        names: of the inputs, in the order of `forward`.
        limit: rows to read; of more they are taken at even distances.

    Raises:
        CalibrationError: no such file, or not one array of equal length for every input.
    """
    source = Path(path)
    if source.suffix != ".npz":
        raise CalibrationError(f"{source}: the network takes {len(names)} inputs; pass an .npz with an array for each")
    arrays = by_name(source)
    if not set(names) <= set(arrays) and len(arrays) != len(names):
        raise CalibrationError(f"{source}: holds {', '.join(arrays)}; the network takes {', '.join(names)}")
    chosen = [arrays[name] for name in names] if set(names) <= set(arrays) else list(arrays.values())
    counts = {len(array) if array.ndim and array.dtype.kind in "fiub" else 0 for array in chosen}
    if len(counts) != 1 or counts == {0}:
        shapes = ", ".join(f"{array.dtype} {array.shape}" for array in chosen)
        raise CalibrationError(f"{source}: holds {shapes}; expected numbers, as many rows in each")
    rows = _spread(counts.pop(), limit)
    tensors = [torch.from_numpy(np.ascontiguousarray(array[rows])) for array in chosen]
    return list(zip(*(tensor.split(64) for tensor in tensors), strict=True))


def _from_array(source: Path, shape: Sequence[int], limit: int) -> Tensor:
    with opened(source) as array:
        if array.dtype.kind not in "fiub" or len(array.shape) not in (3, 4):
            raise CalibrationError(f"{source}: holds {array.dtype} of shape {array.shape}, not images (N, H, W, C)")
        if 0 in array.shape:
            raise CalibrationError(f"{source}: holds an array of shape {array.shape}, which is empty; pass images")
        if math.prod(array.shape[1:]) > _MOST_VALUES:
            raise CalibrationError(f"{source}: holds images of {array.shape[1:]}, which are too large; scale them down")
        each = max(1, _PART_VALUES // math.prod(array.shape[1:]))
        numbers = _spread(array.shape[0], limit)
        parts = (numbers[start : start + each] for start in range(0, len(numbers), each))
        return torch.cat([_prepared(array.images(part), source, shape) for part in parts])


def _prepared(array: npt.NDArray[Any], source: Path, shape: Sequence[int]) -> Tensor:
    """Some images of an array, (N, C, H, W) of the wanted size."""
    array = array[..., None] if array.ndim == 3 else array
    array = array.astype(np.float64 if array.dtype == np.longdouble else array.dtype.newbyteorder("="), copy=False)
    tensor = unit(array, source)
    if tensor.shape[1] != shape[1] or (tensor.shape[3] == shape[1] and tensor.shape[1:] != tuple(shape[1:])):
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.shape[1] != shape[1]:
        raise CalibrationError(
            f"{source}: holds images of shape {array.shape[1:]}, the network takes {shape[1]} channels"
        )
    return _fitted(tensor, shape)


def _from_folder(source: Path, shape: Sequence[int], limit: int) -> Tensor:
    try:
        pillow = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise CalibrationError(
            f"{source}: reading image files needs Pillow; pip install pillow, or pass .npy"
        ) from error
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise CalibrationError(f"{source}: holds no images ({', '.join(sorted(SUFFIXES))})")
    if shape[1] not in (1, 3):
        hint = "add --layout nhwc if they come last, or " if shape[-1] in (1, 3) else ""
        raise CalibrationError(
            f"{source}: image files have 1 or 3 channels, the network takes {shape[1]}; {hint}pass .npy"
        )
    read = []
    for index in _spread(len(files), limit):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pillow.DecompressionBombWarning)
                image = pillow.open(files[index])
            with image:
                pixels = _pixels(image, shape[1])
        except Exception as error:  # Pillow raises what its decoders raise
            raise CalibrationError(f"{files[index]}: is no image ({error}); remove it") from error
        read.append(_fitted(unit(pixels, files[index]).permute(2, 0, 1)[None], shape))
    return torch.cat(read)


def _pixels(image: Any, channels: int) -> npt.NDArray[Any]:
    """An opened file's pixels (H, W, C) in their own depth: Pillow's conversions cut 16 bits and floats off at 255."""
    if image.mode[0] in "IF":  # "I;16", "I", "F": one channel
        return np.repeat(np.asarray(image)[..., None], channels, axis=2)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[..., None] if channels == 1 else pixels


def _fitted(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Scaled to cover the wanted size, the middle cut out."""
    height, width = shape[2:]
    if images.shape[2:] == (height, width):
        return images
    scale = max(height / images.shape[2], width / images.shape[3])
    size = [max(height, round(images.shape[2] * scale)), max(width, round(images.shape[3] * scale))]
    scaled = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[:, :, top : top + height, left : left + width].contiguous()


def _spread(count: int, limit: int) -> list[int]:
    """At most `limit` indices at even distances."""
    check_limit(limit)
    taken = min(count, limit)
    return [index * count // taken for index in range(taken)]
