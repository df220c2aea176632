"""Calibration data: unlabelled batches from a tensor, an iterable or a `DataLoader`, checked and counted."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convsurgeon.base.errors import CalibrationError
from convsurgeon.graph.example import Example

BATCH = 64
"""Images per batch where a plain tensor is cut up."""

FEW = 64
"""Fewer images are said to be few."""


@dataclass(frozen=True)
class Calibration:
    """Batches the model runs on, in two parts: those that weights are fitted to, and those they are judged by.

    `notes` is what a reader of the results must know of them; `made_up` that they are no images of the user's.
    """

    fitted: tuple[Example, ...]
    held_back: tuple[Example, ...]
    notes: tuple[str, ...] = ()
    made_up: bool = False

    @property
    def images(self) -> int:
        """Images that weights are fitted to."""
        return sum(map(images_in, self.fitted))


def check_limit(images: int) -> None:
    """Refuses to read none."""
    if images < 1:
        raise CalibrationError(f"images={images}: none would be read; pass 1 or more, a few hundred do best")


def read(batches: object, like: Example, limit: int = 1024, hold_back: float = 0.2, most: int = 128) -> Calibration:
    """Reads at most `limit` images; labels that a loader gives beside them are ignored.

    Args:
        batches: a tensor (N, ...), a numpy array, or an iterable of batches: tensors, (inputs, labels) pairs, tuples of
            the model's arguments, dicts of its keyword arguments, or `Example`s.
        like: the example the model was captured on; batches may differ from it in their sizes only.
        limit: images to use; reading stops there, so an endless generator is fine.
        hold_back: share of the images set aside for judging, at least one where there are two.
        most: no more are set aside than that.

    Raises:
        CalibrationError: nothing to read, or a batch the model cannot take, or one that is not finite.
    """
    check_limit(limit)
    taken: list[Example] = []
    count = 0
    for index, batch in enumerate(batches_of(batches)):
        example = as_example(batch, like, index)
        room = limit - count
        example = example if images_in(example) <= room else first(example, room)
        taken.append(example)
        count += images_in(example)
        if count >= limit:
            break
    if not count:
        raise CalibrationError("calibration: it holds no images; pass at least one batch, a few hundred images do best")
    if count < FEW:
        warnings.warn(f"calibration: {count} images are few; a few hundred do best", stacklevel=4)
    return shared_out(taken, count, min(max(1, round(count * hold_back)), most, count - 1))


def images_in(example: Example) -> int:
    """Batch size: the first dimension of the first tensor."""
    shape = example.tensors()[0].shape
    return int(shape[0]) if shape else 1


def first(example: Example, count: int) -> Example:
    """The first images of a batch."""
    return chosen(example, slice(count))


def leading(batches: Iterable[Example], images: int) -> list[Example]:
    """The first batches, cut to so many images."""
    taken: list[Example] = []
    for batch in batches:
        if images > 0:
            taken.append(batch if images_in(batch) <= images else first(batch, images))
            images -= images_in(taken[-1])
    return taken


def rest(example: Example, start: int) -> Example:
    """A batch without its first images."""
    return chosen(example, slice(start, None))


def chosen(example: Example, rows: slice | Tensor) -> Example:
    """Some images of a batch; a tensor that has no row per image stays whole."""
    size = images_in(example)
    return example.map(lambda tensor: tensor[rows] if tensor.dim() and tensor.shape[0] == size else tensor)


def batches_of(value: object) -> Iterator[Any]:
    """Batches out of whatever was passed; one that ends, or fails, is reported where it does."""
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        tensor = torch.as_tensor(value)
        if tensor.dim() == 0:
            raise CalibrationError("calibration: a single number is no batch; pass images of shape (N, C, H, W)")
        yield from tensor.split(BATCH)
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        yield from value
    else:
        kind = type(value).__name__
        raise CalibrationError(
            f"calibration: a {kind} is no batches; pass a tensor, an iterable of batches or a loader"
        )


def as_example(batch: Any, like: Example, index: int = 0) -> Example:
    """One batch as arguments of the model, labels taken off.

    Raises:
        CalibrationError: it holds no tensor, is of another shape than the example, or not finite.
    """
    if not isinstance(batch, Example | Mapping | Tensor | tuple | list) and hasattr(batch, "__array__"):
        batch = torch.as_tensor(batch)
    arguments = len(like.args)
    if isinstance(batch, tuple | list) and len(batch) > arguments >= 1 and not like.kwargs:
        batch = tuple(batch[:arguments])  # (inputs, labels): what a data set gives beside the inputs is not used
    elif isinstance(batch, Mapping) and like.kwargs:
        batch = {name: batch[name] for name in like.kwargs if name in batch}
    elif isinstance(batch, Mapping) and arguments == 1 and isinstance(like.args[0], Mapping):
        batch = (batch,)
    if isinstance(batch, tuple | list) and not any(isinstance(item, Tensor | tuple | list | Mapping) for item in batch):
        batch = tuple(torch.as_tensor(item) for item in batch)
    try:
        example = Example.of(batch)
    except Exception as error:
        raise CalibrationError(f"calibration: batch {index} is a {type(batch).__name__} without any tensor") from error
    return _checked(example, like, index)


def _checked(example: Example, like: Example, index: int) -> Example:
    """The batch in the example's dtypes and on its devices; refused where shapes or values do not do."""
    wanted, found = like.tensors(), example.tensors()
    shapes = [(tuple(one.shape), tuple(two.shape)) for one, two in zip(wanted, found, strict=False)]
    if len(wanted) != len(found) or any(len(a) != len(b) or a[1:2] != b[1:2] for a, b in shapes):
        last = len(wanted) == len(found) and any(len(a) == len(b) == 4 and b[3] == a[1] for a, b in shapes)
        hint = "channels come first: pass batch.permute(0, 3, 1, 2)" if last else "pass batches like it"
        raise CalibrationError(f"calibration: batch {index} has shape {example}, the example {like}; {hint}")
    if not all(bool(tensor.isfinite().all()) for tensor in found):
        raise CalibrationError(f"calibration: batch {index} holds NaN or infinity; leave such images out")
    targets = iter(wanted)

    def adapt(tensor: Tensor) -> Tensor:
        target = next(targets)
        return tensor.to(device=target.device, dtype=target.dtype if target.is_floating_point() else None)

    return example.map(adapt)


def shared_out(
    batches: Sequence[Example], count: int, held_back: int, notes: tuple[str, ...] = (), made_up: bool = False
) -> Calibration:
    """The last images of so many are held back; a batch that the border cuts goes to both sides."""
    fitted: list[Example] = []
    held: list[Example] = []
    left = count - held_back
    for batch in batches:
        size = images_in(batch)
        if left >= size:
            fitted.append(batch)
        elif left > 0:
            fitted.append(first(batch, left))
            held.append(rest(batch, left))
        else:
            held.append(batch)
        left -= size
    return Calibration(tuple(fitted), tuple(held) or tuple(fitted), notes, made_up)
