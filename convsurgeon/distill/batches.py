"""Training batches by number: the same batches for any number of processes, from any step on.

Every epoch has its own order of the images, drawn from (seed, epoch). Step s takes the next `batch_size` of them, and
process r of n takes every n-th of these. So a run that goes on at step s has the very batches that it would have had.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from convsurgeon.base import processes
from convsurgeon.base.arrays import as_tensor
from convsurgeon.base.errors import CalibrationError, RecoveryError, describe
from convsurgeon.calibration.collect import as_images
from convsurgeon.calibration.dataset import as_example, images_in
from convsurgeon.graph.example import Example

HELD_BACK_SHARE = 0.1


class TrainingSet:
    """A numbered collection of images: a map-style data set, and how `collate` makes a batch of a list of its items.

    `like` is the example that the model was captured on.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], like: Example, workers: int = 0) -> None:
        self.dataset, self.collate, self.like, self.workers = dataset, collate, like, workers

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, indices: Sequence[int], size: int) -> list[Example]:
        """Return these images in batches of at most `size`."""
        batches = [[(0, index) for index in indices[at : at + size]] for at in range(0, len(indices), size)]
        return list(self.load(batches, seed=0))

    def find(self, wanted: Sequence[Example]) -> list[int]:
        """Return the numbers of the images that are among these; none of a data set that is not in memory."""
        if not isinstance(self.dataset, _InMemory):
            return []
        known = {key for batch in wanted for key in _keys(batch)}
        every = (key for number in range(len(self) if known else 0) for key in _keys(self.dataset.rows([number])))
        return [number for number, key in enumerate(every) if key in known]

    def load(self, batches: Iterable[list[tuple[int, int]]], seed: int, workers: int = 0) -> Iterator[Example]:
        """Yield the batches of an iterable of lists of (step, index), without labels, channels last in memory."""
        loader = DataLoader(
            _Repeatable(self.dataset, seed), batch_sampler=batches, collate_fn=self.collate, num_workers=workers
        )
        with torch.device("cpu"):  # a loader draws its seed where torch makes tensors by default
            found = iter(loader)
        for raw in found:
            yield as_example(raw, self.like).map(as_channels_last)


def training_set(images: object, like: Example, limit: int | None = None) -> TrainingSet:
    """Return the images that a user passed.

    A tensor or array (N, ...), a map-style data set and a loader of one are used where they are; the loader's own
    order, sampler and batches are not used. Anything else that yields batches is read into memory once.

    Labels beside the inputs are not used. `like` is the example that the model was captured on; `limit` says how many
    images of an iterable to read, which is needed where it has no end.
    """
    if isinstance(images, DataLoader) and not isinstance(images.dataset, IterableDataset):
        return TrainingSet(images.dataset, images.collate_fn, like, images.num_workers)
    if isinstance(images, Dataset) and hasattr(images, "__len__"):
        return TrainingSet(images, default_collate, like)
    taken: list[Example] = []
    for index, raw in enumerate(as_images(images, sys.maxsize).batches(like)):
        taken.append(as_example(raw, like, index))
        if limit is not None and sum(map(images_in, taken)) >= limit:
            break
    if not taken:
        raise CalibrationError("recover: no images; pass at least one batch, a few thousand images do best")
    return TrainingSet(_InMemory(taken), lambda items: items[0], like)


def _keys(batch: Example) -> Iterator[bytes]:
    """Yield the bytes of every image, of an input that has a row for each."""
    count = images_in(batch)
    rows = next((tensor for tensor in batch.tensors() if _has_rows(tensor, count)), ())
    return (row.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for row in rows)


def split(count: int, most: int, seed: int, unseen: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Return the numbers of the images to train on and of those held back: `unseen` ones first, then any at random."""
    if count < 2:
        raise CalibrationError(f"recover: {count} images; pass at least two, a few thousand do best")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")
    first = torch.isin(order, as_tensor(unseen).long())
    order = torch.cat([order[first], order[~first]])
    held = min(most, max(1, round(count * HELD_BACK_SHARE)))
    return order[held:], order[:held]


@dataclass(frozen=True)
class Stream:
    """The batches of a training run: of the images of these numbers, `batch_size` of all processes together.

    The seed is that of the order, and of what data set and transform draw.
    """

    images: TrainingSet
    numbers: Tensor
    batch_size: int
    seed: int
    transform: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if self.batch_size % processes.size():
            raise RecoveryError(f"batch_size={self.batch_size}: is not a multiple of {processes.size()} processes")

    @property
    def epoch(self) -> int:
        """Return the steps of an epoch; images beyond a whole batch wait for the next epoch's order."""
        return len(self.numbers) // self.batch_size

    def steps(self, start: int, stop: int) -> Iterator[Example]:
        """Yield this process's share of every batch from step `start` on."""
        batches = self.images.load(self._picks(start, stop), self.seed, self.images.workers)
        for step, batch in enumerate(batches, start):
            if self.transform is None:
                yield batch
                continue
            with own_chance(self.seed, step, processes.rank()):
                changed = _transform(self.transform, batch)
            yield changed.map(as_channels_last)

    def _picks(self, start: int, stop: int) -> Iterator[list[tuple[int, int]]]:
        """Yield the (step, image) pairs of every batch of this process."""
        drawn, order = -1, self.numbers
        for step in range(start, stop):
            epoch, number = divmod(step, self.epoch)
            if epoch != drawn:
                mixed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
                generator = torch.Generator().manual_seed(mixed)
                drawn, order = epoch, self.numbers[torch.randperm(len(self.numbers), generator=generator, device="cpu")]
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield [(step, index) for index in batch[processes.rank() :: processes.size()].tolist()]


def as_channels_last(tensor: Tensor) -> Tensor:
    """Return images (N, C, H, W) in the memory format that torch's convs are fastest in; other tensors as they are."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


@contextmanager
def own_chance(*numbers: int) -> Iterator[None]:
    """Make the random numbers of torch, numpy and `random` depend on these alone, so that a run can be resumed."""
    with kept_chance():
        _seed(*numbers)
        yield


@contextmanager
def kept_chance() -> Iterator[None]:
    """Put the generators of torch, numpy and `random` back afterwards."""
    states = (random.getstate(), np.random.get_state())  # a user's transform may draw from these
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _seed(*numbers: int) -> None:
    mixed = int(np.random.SeedSequence([abs(number) for number in numbers]).generate_state(1, np.uint64)[0])
    # torch.manual_seed keeps its callers, as texts, until an accelerator starts: without one that is slow, and for ever
    seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    seed(mixed >> 1)
    np.random.seed(mixed & 0xFFFFFFFF)
    random.seed(mixed)


def _transform(transform: Callable[[Any], Any], batch: Example) -> Example:
    alone = len(batch.args) == 1 and not batch.kwargs and isinstance(batch.args[0], Tensor)
    try:
        return Example.of(transform(batch.args[0] if alone else batch))
    except RecoveryError:
        raise
    except Exception as error:  # the user's own code
        raise RecoveryError(f"recover: the transform fails ({describe(error)})") from error


class _Repeatable(Dataset[Any]):
    """A data set whose own random transforms depend on (seed, step, image), in whatever process it is asked."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitems__(self, picks: Sequence[tuple[int, int]]) -> list[Any]:
        if isinstance(self.dataset, _InMemory):
            return [self.dataset.rows([index for _, index in picks])]
        with kept_chance():
            items = []
            for step, index in picks:
                _seed(self.seed, step, index)
                items.append(self.dataset[index])
            return items


class _InMemory:
    """Batches in memory, end to end."""

    def __init__(self, batches: Sequence[Example]) -> None:
        counts = [images_in(one) for one in batches]
        self._count = sum(counts)
        flat = [pytree.tree_leaves((one.args, one.kwargs)) for one in batches]
        columns = iter([_joined(column, counts) for column in zip(*flat, strict=True)])
        self._all = Example(*pytree.tree_map(lambda _: next(columns), (batches[0].args, batches[0].kwargs)))

    def __len__(self) -> int:
        return self._count

    def rows(self, indices: Sequence[int]) -> Example:
        index = as_tensor(indices)
        return self._all.map(lambda tensor: tensor[index] if _has_rows(tensor, self._count) else tensor)


def _joined(column: Sequence[Any], counts: Sequence[int]) -> Any:
    """Return one argument of all batches: joined where it has a row for every image, the first batch's otherwise."""
    if not all(_has_rows(item, count) for item, count in zip(column, counts, strict=True)):
        return column[0]
    shapes = {tuple(item.shape[1:]) for item in column}
    if len(shapes) > 1:
        found = " and ".join("x".join(map(str, shape)) for shape in sorted(shapes)[:2])
        raise CalibrationError(f"recover: batches of images {found} cannot be mixed; crop or scale them to one size")
    return torch.cat(list(column))


def _has_rows(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count
