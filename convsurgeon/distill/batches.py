"""Training batches by number: the same global batches for any number of processes, from any step on.

Every epoch has its own order of the images, drawn from (seed, epoch); step s takes the next `batch_size` of them, and
of these process r of n takes every n-th. So n processes see together what one alone would see, and a run that is taken
up at step s goes on with the very batches it would have had. torch's `DistributedSampler` always begins at the start of
an epoch. Fetching is `torch.utils.data.DataLoader`'s.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate

from convsurgeon.base import processes as world
from convsurgeon.base.errors import CalibrationError, RecoveryError
from convsurgeon.calibration.collect import as_images
from convsurgeon.calibration.dataset import as_example, images_in
from convsurgeon.graph.example import Example

HELD_BACK_SHARE = 0.1
"""Of the images, set aside for judging; no more than the caller says."""


@dataclass(frozen=True)
class Batch:
    """Inputs as the model takes them, and whatever the data set gives beside them: labels, or None."""

    example: Example
    labels: Any


class Pool:
    """A numbered collection of images: what a user passed, and how a batch is made of some of them.

    Args:
        dataset: map-style; items are what `collate` takes a list of.
        collate: list of items -> batch, as a `DataLoader` has it.
        like: the example the model was captured on.
        workers: processes that fetch.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], like: Example, workers: int = 0) -> None:
        self.dataset, self.collate, self.like, self.workers = dataset, collate, like, workers

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, raw: Any) -> Batch:
        """A collated batch as the model takes it, the labels taken off.

        Raises:
            CalibrationError: its shapes are not the model's, or it is not finite.
        """
        if isinstance(raw, Batch):
            return raw
        beside = raw[len(self.like.args)] if _labelled(raw, self.like) else None
        return Batch(as_example(raw, self.like), beside)

    def take(self, indices: Sequence[int], size: int) -> list[Batch]:
        """These images, in batches of at most `size`."""
        loader = DataLoader(
            _Drawn(self.dataset, 0),
            batch_sampler=[[(0, index) for index in indices[at : at + size]] for at in range(0, len(indices), size)],
            collate_fn=self.collate,
        )
        return [self.batch(raw) for raw in loader]


def images_from(batches: object, like: Example, limit: int | None = None) -> Pool:
    """Reads what a user passed as `batches`.

    A tensor or array (N, ...), a map-style data set and a loader of one are used where they are; a loader's own order,
    sampler and batches are not. Anything else that yields batches is read into memory once.

    Args:
        batches: as above; labels beside the inputs are kept.
        like: the example the model was captured on.
        limit: of an iterable, how many images to read; needed where it has no end.

    Raises:
        CalibrationError: nothing to read, or batches the model cannot take.
    """
    if isinstance(batches, DataLoader) and not isinstance(batches.dataset, IterableDataset):
        return Pool(batches.dataset, batches.collate_fn, like, batches.num_workers)
    if isinstance(batches, Dataset) and hasattr(batches, "__len__"):
        return Pool(batches, default_collate, like)
    return Pool(_Memory(_read(batches, like, limit)), _only, like)


def split(count: int, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the images to train on and of those held back, drawn at random.

    Raises:
        CalibrationError: fewer than two images.
    """
    if count < 2:
        raise CalibrationError(f"recover: {count} images; pass at least two, a few thousand do best")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held = min(most, max(1, round(count * HELD_BACK_SHARE)))
    return order[held:], order[:held]


@dataclass(frozen=True)
class Stream:
    """The batches of a training run.

    `batch_size` is that of all processes together.

    Raises:
        RecoveryError: it is no multiple of the number of processes.
    """

    images: Pool
    numbers: Tensor
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size % world.size():
            raise RecoveryError(
                f"recover: batch_size {self.batch_size} is no multiple of {world.size()} processes; pass one that is"
            )

    @property
    def epoch(self) -> int:
        """Steps of an epoch; images beyond a whole batch wait for the next one's order."""
        return len(self.numbers) // self.batch_size

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """This process's share of every batch from step `start` on."""
        loader = DataLoader(
            _Drawn(self.images.dataset, self.seed),
            batch_sampler=_Steps(self, start, stop),
            collate_fn=self.images.collate,
            num_workers=self.images.workers,
        )
        for raw in loader:
            yield self.images.batch(raw)


@contextmanager
def own_chance(seed: int, step: int) -> Iterator[None]:
    """Random numbers of torch, numpy and `random` that depend on (seed, step, process) alone.

    A resumed run needs no state of a generator, then: what is drawn in a step follows from its number.
    """
    with kept_chance():
        _draw_from(seed, step, world.rank())
        yield


@contextmanager
def kept_chance() -> Iterator[None]:
    """Puts the generators of torch, numpy and `random` back afterwards."""
    states = (random.getstate(), np.random.get_state())  # users' transforms draw from this one
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _draw_from(*numbers: int) -> None:
    mixed = int(np.random.SeedSequence([abs(number) for number in numbers]).generate_state(1, np.uint64)[0])
    torch.manual_seed(mixed >> 1)
    np.random.seed(mixed & 0xFFFFFFFF)
    random.seed(mixed)


class _Steps(Sampler[list[tuple[int, int]]]):
    """(step, image) pairs of every batch of this process."""

    def __init__(self, stream: Stream, start: int, stop: int) -> None:
        self.stream, self.start, self.stop = stream, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size, drawn, order = self.stream.batch_size, -1, self.stream.numbers
        for step in range(self.start, self.stop):
            epoch, number = divmod(step, self.stream.epoch)
            if epoch != drawn:
                drawn, order = epoch, self._order(epoch)
            mine = order[number * size : (number + 1) * size][world.rank() :: world.size()]
            yield [(step, index) for index in mine.tolist()]

    def _order(self, epoch: int) -> Tensor:
        mixed = int(np.random.SeedSequence([self.stream.seed, epoch]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(mixed)
        return self.stream.numbers[torch.randperm(len(self.stream.numbers), generator=generator)]


class _Drawn(Dataset[Any]):
    """A data set whose own random transforms depend on (seed, step, image), in whatever process it is asked."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitems__(self, picks: Sequence[tuple[int, int]]) -> list[Any]:
        if isinstance(self.dataset, _Memory):
            return [self.dataset.rows([index for _, index in picks])]
        with kept_chance():
            return [self._item(step, index) for step, index in picks]

    def _item(self, step: int, index: int) -> Any:
        _draw_from(self.seed, step, index)
        return self.dataset[index]


class _Memory:
    """Batches in memory, end to end."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        examples = [batch.example for batch in batches]
        flat = [pytree.tree_leaves((one.args, one.kwargs)) for one in examples]
        self._count = sum(map(images_in, examples))
        columns = iter([_joined(column, [images_in(one) for one in examples]) for column in zip(*flat, strict=True)])
        args, kwargs = pytree.tree_map(lambda _: next(columns), (examples[0].args, examples[0].kwargs))
        self._all = Example(args, kwargs)
        labels = [batch.labels for batch in batches]
        self._labels = torch.cat(labels) if all(isinstance(item, Tensor) and item.dim() for item in labels) else None

    def __len__(self) -> int:
        return self._count

    def rows(self, indices: Sequence[int]) -> Batch:
        """The images of these numbers."""
        index = torch.as_tensor(indices)
        example = self._all.map(lambda tensor: tensor[index] if _rows(tensor, self._count) else tensor)
        return Batch(example, None if self._labels is None else self._labels[index])


def _joined(column: Sequence[Any], counts: Sequence[int]) -> Any:
    """One argument of all batches: joined where it has a row for every image, the first batch's otherwise."""
    if not all(_rows(item, count) for item, count in zip(column, counts, strict=True)):
        return column[0]
    shapes = {tuple(item.shape[1:]) for item in column}
    if len(shapes) > 1:
        found = " and ".join("x".join(map(str, shape)) for shape in sorted(shapes)[:2])
        raise CalibrationError(f"recover: batches of images {found} cannot be mixed; crop or scale them to one size")
    return torch.cat(list(column))


def _rows(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count


def _read(batches: object, like: Example, limit: int | None) -> list[Batch]:
    taken: list[Batch] = []
    count = 0
    for index, raw in enumerate(as_images(batches, sys.maxsize).batches(like)):
        beside = torch.as_tensor(raw[len(like.args)]) if _labelled(raw, like) else None
        taken.append(Batch(as_example(raw, like, index), beside))
        count += images_in(taken[-1].example)
        if limit is not None and count >= limit:
            break
    if not count:
        raise CalibrationError("recover: no images; pass at least one batch, a few thousand images do best")
    return taken


def _labelled(raw: Any, like: Example) -> bool:
    """Whether a batch holds more than the model's arguments."""
    return isinstance(raw, tuple | list) and not like.kwargs and len(raw) > len(like.args) >= 1


def _only(items: list[Any]) -> Any:
    return items[0]
