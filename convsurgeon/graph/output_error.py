"""The error of a network's outputs against the original's: the one definition that everything compares and reports.

The squared error of every channel over that channel's variance, as a root mean square over the channels, then over the
outputs. The variance is that of single elements from image to image: what all images have in common (the grid of a
detector's anchors, a constant, a mask) does not make an error look small. A few channels that are lost stand out among
hundreds that are not: one in a hundred is an error of 0.1.

Of rows of columns, (N, rows, columns) or (N, columns, rows), either axis may be that of the channels. Both are tried,
and the larger error counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convsurgeon.base.errors import CalibrationError
from convsurgeon.graph.outputs import pair_outputs

PRIOR = 8
"""Degrees of freedom that the mean variance of a channel's kind counts for beside the channel's own."""
SMALL = 0.1
"""Least variance of a channel, as a share of the mean of its kind: a dead channel's errors do not count for all."""
GAP = 100.0
"""Ratio of neighbouring variances from which on channels are of another kind: boxes in pixels beside scores."""

_EPS = 1e-12
"""Variance over the mean square below which a channel is constant."""
_LEAST_SCORE = 1e-8
"""Least variance of values between 0 and 1."""


class OutputError:
    """The error of one network's outputs against another's, added up batch by batch."""

    def __init__(self) -> None:
        self._outputs: dict[int, dict[torch.Size, _Moments]] = {}

    def add(self, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        """Add what both networks are judged at for one batch, in the same order."""
        for index, (one, two) in enumerate(pair_outputs(wanted, found)):
            if one.numel():
                _moments(self._outputs.setdefault(index, {}), one).add_errors((_rows(one) - _rows(two)).square_())

    @property
    def value(self) -> float:
        """Return the error so far; infinite where an output is not finite."""
        return self.with_doubt()[0]

    def with_doubt(self) -> tuple[float, float]:
        """Return the error, and its standard error over images; of one image that is as large."""
        if not self._outputs:
            raise CalibrationError(
                "error: there is no floating-point output to compare; convert the part of the model before its "
                "integer outputs, or pass calibration=False"
            )
        sizes = [list(output.values()) for output in self._outputs.values()]
        errors, doubts = [], []
        for output in sizes:
            if any(moments.moves for moments in output):
                found = torch.tensor([moments.error() for moments in output], dtype=torch.float64, device="cpu")
                share = torch.tensor([float(moments.images) for moments in output], dtype=torch.float64, device="cpu")
                found *= (share / share.sum())[:, None]
                errors.append(float(found[:, 0].sum()))
                doubts.append(float(found[:, 1].norm()))
        error = math.sqrt(sum(one * one for one in errors) / max(1, len(errors)))
        if not math.isfinite(error):
            return math.inf, 0.0
        return error, sum(a * b for a, b in zip(errors, doubts, strict=True)) / max(len(errors) * error, 1e-300)


@dataclass(frozen=True)
class Scale:
    """One over the variances (C,) of the channels along one axis of an output, as its error is scaled by them."""

    axis: int
    inverse: Tensor

    def of(self, values: Tensor) -> Tensor:
        """Return the weights of an output's values; the mean of all where it has another number of channels."""
        inverse = self.inverse.to(values)
        if values.dim() < 2 or values.shape[self.axis] != len(inverse):
            return inverse.mean()
        return inverse.view(-1, *[1] * (values.dim() - 1 - self.axis))


def scales(answers: Sequence[Sequence[Tensor]]) -> list[list[Scale]]:
    """Return the scales of every output for some batches, along every axis that may be that of the channels."""
    found = []
    _check_numbers([len(answer) for answer in answers])
    for column in zip(*answers, strict=True):
        sizes: dict[torch.Size, _Moments] = {}
        for values in column:
            _moments(sizes, values)
        largest = max(sizes.values(), key=lambda one: one.images)
        found.append([Scale(axis, 1 / torch.where(own == 0, 1.0, own)) for axis, own in largest.variances()])
    return found


def _check_numbers(numbers: Sequence[int]) -> None:
    """Refuse a network that is judged at another number of tensors for another number of images."""
    if len(set(numbers)) > 1:
        few, many = min(numbers), max(numbers)
        raise CalibrationError(
            f"output: the network picks from {few} tensors in one batch and from {many} in another, as where "
            "it decides image by image; have forward return what it decides from, and decide outside of it"
        )


def weigh(values: Tensor, axes: Sequence[Scale]) -> Tensor:
    """Return the weights of an output's squared errors, which broadcast with its values."""
    total = axes[0].of(values)
    for scale in axes[1:]:
        total = total + scale.of(values)
    return total / len(axes)


def relative_error(found: Sequence[Tensor], wanted: Sequence[Tensor], own: Sequence[Sequence[Scale]]) -> Tensor:
    """Return the error as a loss: a mean with constant variances, so that a batch's is the mean of its parts'.

    The variances are from `scales`.
    """
    parts = []
    _check_numbers([len(wanted), len(own)])
    for (one, two), axes in zip(pair_outputs(wanted, found), own, strict=True):
        dtype = torch.promote_types(one.dtype, torch.float32)
        squared = (two.to(dtype) - one.to(dtype)).square()
        parts.append((squared * weigh(squared, axes)).mean())
    if not parts:
        raise CalibrationError("error: there is no floating-point output to compare")
    return torch.stack(parts).mean()


def by_channel(values: Tensor) -> Tensor:
    """Return the values in float64, a row for each channel: those along dimension 1, or one for all."""
    exact = values.double()
    return exact.transpose(0, 1).flatten(1) if exact.dim() > 1 else exact.reshape(1, -1)


class _Moments:
    """Sums over the images of one size, of every element of one output.

    They are of the distances from an image's values, `origin`, so that what never changes is exactly constant.
    """

    def __init__(self, origin: Tensor) -> None:
        self.images, self.origin = 0, origin
        self.total, self.squares = torch.zeros_like(origin), torch.zeros_like(origin)
        self.axes = channel_axes(tuple(origin.shape))
        self.wrong: list[list[Tensor]] = [[] for _ in self.axes]
        self.bounded = [torch.ones(origin.shape[axis], dtype=torch.bool, device=origin.device) for axis in self.axes]

    @property
    def moves(self) -> bool:
        """Whether the output changes from image to image, or the other network misses it."""
        return self.images == 1 or bool(self.squares.any()) or any(bool(one.any()) for one in self.wrong[0])

    def add(self, rows: Tensor) -> None:
        self.images += len(rows)
        away = rows - self.origin
        self.total += away.sum(0)
        self.squares += away.square_().sum(0)
        inside = ((rows >= 0) & (rows <= 1)).all(0)
        for bounded, axis in zip(self.bounded, self.axes, strict=True):
            bounded &= _lines(inside, axis).all(1)

    def add_errors(self, squared: Tensor) -> None:
        """Add the mean squared error (N, C) of every image and channel."""
        for wrong, axis in zip(self.wrong, self.axes, strict=True):
            wrong.append(squared.movedim(axis + 1, 1).reshape(len(squared), squared.shape[axis + 1], -1).mean(2))

    def variances(self) -> Iterator[tuple[int, Tensor]]:
        """Yield every axis of the output that may be that of the channels, with their variances."""
        for axis, bounded in zip(self.axes, self.bounded, strict=True):
            values = _lines(self.origin, axis)
            count = values.shape[1] - 1
            if self.images > 1:
                spread = _lines(self.squares - self.total.square() / self.images, axis).clamp(min=0)
                own, count = spread.mean(1) / (self.images - 1), (count + 1) * (self.images - 1)
            else:  # from position to position, or from channel to channel where each has a single value
                own = values.var(1) if count else values.var(correction=0).expand(len(values))
            own = own.clamp(min=_EPS * values.square().mean(1))
            yield axis + 1, _steadied(own, count, bounded, split=self.origin.dim() != 3)

    def error(self) -> tuple[float, float]:
        """Return the largest error along an axis, and its standard error over images to first order."""
        largest = (0.0, 0.0)
        for (_, own), wrong in zip(self.variances(), self.wrong, strict=True):
            each = torch.cat(wrong)
            ratios = torch.where(each == 0, 0.0, each / own)
            error = float(ratios.mean(0).square().mean().sqrt())
            if not math.isfinite(error):
                return math.inf, 0.0
            if error > largest[0]:
                by_image = ratios @ ratios.mean(0) / (ratios.shape[1] * error)
                largest = error, float(by_image.std()) / math.sqrt(len(each)) if len(each) > 1 else error
        return largest


def _moments(sizes: dict[torch.Size, _Moments], values: Tensor) -> _Moments:
    """Return the sums over outputs of this size, with these added."""
    rows = _rows(values)
    found = sizes.setdefault(rows.shape[1:], _Moments(rows[0]))
    found.add(rows)
    return found


def _rows(values: Tensor) -> Tensor:
    """Return an output in float64, a row for each image, with one dimension at least besides."""
    exact = values.detach().double()
    return exact.reshape(-1, 1) if exact.dim() < 2 else exact


def _lines(values: Tensor, axis: int) -> Tensor:
    """Return an image's values, a row for each channel."""
    return values.movedim(axis, 0).reshape(values.shape[axis], -1)


def channel_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return which axes of an image's output may be that of the channels: both ends, of maps the one that differs."""
    if len(shape) == 3:
        first, second, last = shape
        if second == last or first < min(second, last):
            return (0,)
        if first == second or last < min(first, second):
            return (2,)
    return (0,) if len(shape) == 1 else (0, len(shape) - 1)


def _steadied(own: Tensor, count: int, bounded: Tensor, *, split: bool) -> Tensor:
    """Return variances that are drawn towards the mean of their kind where few values are known, and never far below.

    Each has `count` degrees of freedom. Channels that are `bounded` between 0 and 1, as scores are, are a kind of their
    own. With `split` the others are of several kinds, where their variances have gaps.
    """
    found = own.clone()
    for kind in _kinds(own, bounded, split):
        usual = own[kind].mean()
        found[kind] = ((count * own[kind] + PRIOR * usual) / (count + PRIOR)).clamp(min=SMALL * float(usual))
    return torch.where(bounded & (found > 0), found.clamp(min=_LEAST_SCORE), found)


def _kinds(own: Tensor, bounded: Tensor, split: bool) -> Iterator[Tensor]:
    """Yield the places of the channels of one kind."""
    live = bounded & (own > 0)  # a channel that is always 0 is a score only beside others
    bounded = bounded if bool(live.any()) else live
    if bool(bounded.any()):
        yield bounded.nonzero()[:, 0]
    places = (~bounded).nonzero()[:, 0]
    places = places[own[places].argsort()]
    ordered = own[places]
    gaps = (ordered[1:] > GAP * ordered[:-1]) & (ordered[:-1] > _EPS * ordered[-1:]) & split
    yield from (part for part in places.tensor_split((gaps.nonzero()[:, 0] + 1).cpu()) if len(part))
