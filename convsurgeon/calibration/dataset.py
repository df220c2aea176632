"""The calibration set: unlabelled batches, checked, and split into those to fit on and those held back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convsurgeon.base.arrays import as_tensor
from convsurgeon.base.errors import CalibrationError
from convsurgeon.calibration.channels_last import is_channels_last
from convsurgeon.calibration.pictures import is_path, is_picture, is_single
from convsurgeon.graph.example import Example, is_plain

BATCH = 64
"""Images per batch of what does not come in batches."""
_HELD_BACK, _MOST_HELD_BACK = 0.2, 128


@dataclass(frozen=True)
class Calibration:
    """Batches that the model runs on, in two parts: those that weights are fitted to, and those that judge the fit.

    Attributes:
        fitted: Batches to fit weights to.
        held_back: Batches to judge by.
        notes: What a reader of the results must know about the images.
        synthetic: Whether the images are not the user's.
        warning: What the results may be wrong for, in one sentence; empty where nothing is known.
        together: How many images the model takes at once, where the batches are smaller.
    """

    fitted: tuple[Example, ...]
    held_back: tuple[Example, ...]
    notes: tuple[str, ...] = ()
    synthetic: bool = False
    warning: str = ""
    together: int = 1

    @property
    def images(self) -> int:
        """Number of images that weights are fitted to."""
        return sum(map(images_in, self.fitted))


def hold_back(
    batches: Sequence[Example], multiple: int = 1, *, notes: tuple[str, ...] = (), synthetic: bool = False
) -> Calibration:
    """Return a calibration set whose last images are held back: a fifth, at most 128, a multiple of a number."""
    count = sum(map(images_in, batches))
    held_back = min(max(1, round(count * _HELD_BACK)), _MOST_HELD_BACK, count - 1)
    left = count - min(max(multiple, held_back // multiple * multiple), count - 1)
    fitted: list[Example] = []
    held: list[Example] = []
    for batch in batches:
        size = images_in(batch)
        if left >= size:
            fitted.append(batch)
        elif left > 0:
            fitted.append(first_images(batch, left))
            held.append(select_images(batch, slice(left, None)))
        else:
            held.append(batch)
        left -= size
    return Calibration(tuple(fitted), tuple(held) or tuple(fitted), notes, synthetic)


def images_in(example: Example) -> int:
    """Return the batch size: the first dimension of the first tensor."""
    shape = example.tensors()[0].shape
    return int(shape[0]) if shape else 1


def first_images(example: Example, count: int) -> Example:
    """Return the first images of a batch."""
    return select_images(example, slice(count))


def select_images(example: Example, rows: slice | Tensor) -> Example:
    """Return some images of a batch; a tensor that does not have one row for each image stays whole."""
    size = images_in(example)
    return example.map(lambda tensor: tensor[rows] if tensor.dim() and tensor.shape[0] == size else tensor)


def first_batches(batches: Iterable[Example], images: int) -> list[Example]:
    """Return the first batches, the last one cut so that they hold at most so many images."""
    taken: list[Example] = []
    for batch in batches:
        if images > 0:
            taken.append(batch if images_in(batch) <= images else first_images(batch, images))
            images -= images_in(taken[-1])
    return taken


def join_batches(batches: Iterable[Example], images: int) -> list[Example]:
    """Return the batches, neighbours of equal shapes joined to at most so many images."""
    groups: list[list[Example]] = []
    for batch in batches:
        alike = bool(groups) and _shapes(groups[-1][0]) == _shapes(batch)
        if alike and sum(map(images_in, groups[-1])) + images_in(batch) <= images:
            groups[-1].append(batch)
        else:
            groups.append([batch])
    return [_joined(group) if len(group) > 1 else group[0] for group in groups]


def _joined(batches: Sequence[Example]) -> Example:
    columns = zip(*(batch.tensors() for batch in batches), strict=True)
    return batches[0].with_tensors(torch.cat(column) for column in columns)


def _shapes(batch: Example) -> list[Sequence[int]]:
    """Return the shapes of a batch's images; of what is not one row for each image a shape of its own."""
    size = images_in(batch)
    return [one.shape[1:] if one.dim() and len(one) == size else (id(batch),) for one in batch.tensors()]


def split_batches(batches: Iterable[Example], size: int) -> tuple[Example, ...]:
    """Return the images in batches of one size, without what is left over."""
    return tuple(
        select_images(batch, slice(start, start + size))
        for batch in batches
        for start in range(0, images_in(batch) - size + 1, size)
    )


def as_example(batch: Any, like: Example, index: int = 0) -> Example:
    """Return one batch as arguments of the model, without labels.

    Raises:
        CalibrationError: It holds no tensor, has another shape than the example, or is not finite.
    """
    given = batch
    try:
        if not isinstance(batch, Example | Mapping | Tensor | tuple | list) and hasattr(batch, "__array__"):
            batch = as_tensor(batch)
        batch = without_labels(batch, like)
        if isinstance(batch, tuple | list) and not any(map(_holds_tensors, batch)):
            batch = tuple(map(as_tensor, batch))
        example = Example.of(batch)
    except Exception as error:  # as_tensor raises as many kinds as there are kinds of object
        raise CalibrationError(
            f"calibration: batch {index} is a {_kind(given)} without any tensor; pass tensors, or a folder or "
            "a Dataset of images"
        ) from error
    return _checked(example, like, index)


def check_values(images: Tensor, what: str) -> None:
    """Refuse what is not an array of values.

    Raises:
        CalibrationError: The tensor is sparse, nested or on the meta device.
    """
    if images.is_meta or not is_plain(images):
        raise CalibrationError(f"calibration: {what} is sparse, nested or on the meta device; pass plain tensors")


def _holds_tensors(item: object) -> bool:
    return isinstance(item, Tensor | tuple | list | Mapping)


def _kind(batch: object) -> str:
    """Return the type of a batch, and of the items of a list."""
    inner = f" of {type(batch[0]).__name__}" if isinstance(batch, tuple | list) and batch else ""
    return f"{type(batch).__name__}{inner}"


def without_labels(batch: Any, like: Example) -> Any:
    """Return what a data set gives, as arguments of the model, without what it gives beside them."""
    arguments, channels = len(like.args), picture_channels(like)
    if isinstance(batch, Mapping):
        if like.kwargs and set(like.kwargs) & set(batch):
            return {name: batch[name] for name in like.kwargs if name in batch}
        if arguments == 1 and isinstance(like.args[0], Mapping):
            return (batch,)
        return _only_picture(list(batch.values()), channels, batch)
    if not isinstance(batch, tuple | list) or not len(batch) > arguments >= 1 or like.kwargs:
        return batch
    if channels and isinstance(batch, list) and all(is_single(one, channels) for one in batch):
        return batch
    if channels and not is_picture(batch[0], channels):
        return _only_picture(batch, channels, tuple(batch[:arguments]))
    return tuple(batch[:arguments])


def picture_channels(like: Example) -> int:
    """Return the channels of the one image that a network takes; 0 for a network that takes something else."""
    tensors = like.tensors()
    if len(tensors) != 1 or tensors[0].dim() != 4:
        return 0
    return int(tensors[0].shape[3 if is_channels_last(tensors[0]) else 1])


def _only_picture(values: Sequence[Any], channels: int, otherwise: Any) -> Any:
    """Return the one of several values that may be pictures, as the one argument; pixels rather than paths."""
    found = [one for one in values if channels and is_picture(one, channels)]
    found = [one for one in found if not is_path(one)] or found
    return (found[0],) if len(found) == 1 else otherwise


def _checked(example: Example, like: Example, index: int) -> Example:
    """Return the batch in the example's dtypes and on its devices."""
    wanted, found = like.tensors(), example.tensors()
    for tensor in found:
        check_values(tensor, f"batch {index}")
    shapes = [(tuple(one.shape), tuple(two.shape)) for one, two in zip(wanted, found, strict=False)]
    if len(wanted) != len(found) or any(len(a) != len(b) or a[1:2] != b[1:2] for a, b in shapes):
        last = len(wanted) == len(found) and any(len(a) == len(b) == 4 and b[3] == a[1] for a, b in shapes)
        hint = "channels come first: pass batch.permute(0, 3, 1, 2)" if last else "pass batches like it"
        raise CalibrationError(f"calibration: batch {index} has shape {example}, the example {like}; {hint}")
    for one, two in zip(wanted, found, strict=True):
        if one.dtype == torch.uint8 and two.is_floating_point():
            raise CalibrationError(
                f"calibration: batch {index} holds {two.dtype}, the example uint8; pass bytes, or Pillow images"
            )
        if two.is_complex() and not one.is_complex():
            raise CalibrationError(
                f"calibration: batch {index} holds {two.dtype}, the example {one.dtype}; pass its kind"
            )
    if not all(bool(tensor.isfinite().all()) for tensor in found):
        raise CalibrationError(f"calibration: batch {index} holds NaN or infinity; leave such images out")
    return example.with_tensors(
        one.to(device=like_one.device, dtype=like_one.dtype if like_one.is_floating_point() else None)
        for one, like_one in zip(found, wanted, strict=True)
    )
