"""What a network decides by its outputs, against what another decides.

A vector of scores, or one at every place of a map, is decided by its largest channel; a single channel, and channels
that are each between 0 and 1, by whether they are above their middle. What changed decisions cost in accuracy is
estimated without labels: by how much less likely the original takes the other's choice to be than its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from convsurgeon.graph.output_error import channel_axes

_SURE = 1.96
"""Standard deviations of a 95 % interval."""


class Decisions:
    """The decisions of two networks, added up batch by batch."""

    def __init__(self) -> None:
        self._outputs: dict[int, _Sums] = {}

    def add(self, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        """Add what both networks are judged at for one batch, of the same shapes; of others nothing is known."""
        for index, (one, two) in enumerate(zip(wanted, found, strict=True)):
            if one.dim() in (2, 4) and one.shape == two.shape and one.numel():
                self._outputs.setdefault(index, _Sums()).add(one, two)

    @property
    def agreement(self) -> float | None:
        """Share of decisions that stay, where there is one for each image; None elsewhere."""
        every = list(self._outputs.values())
        return every[0].agreement if len(every) == 1 and not every[0].mapped else None

    @property
    def overlap(self) -> float | None:
        """Of decisions at every place of a map, intersection over union, the mean over classes; None without maps."""
        return min((sums.overlap for sums in self._outputs.values() if sums.mapped), default=None)

    @property
    def lost(self) -> float:
        """Return the share of right decisions that are lost, by the original's own probabilities."""
        return self.with_doubt()[0]

    def with_doubt(self) -> tuple[float, float]:
        """Return the share that is lost, and its standard error over images."""
        return max((sums.lost() for sums in self._outputs.values()), default=(0.0, 0.0))


class _Sums:
    """Sums over the decisions by one output, for every class that the original chooses."""

    def __init__(self) -> None:
        self.count = self.other = self.same = torch.zeros(())
        self.cost: list[Tensor] = []
        """Of the images of every batch, by class."""
        self.mapped = False

    def add(self, wanted: Tensor, found: Tensor) -> None:
        axis = channel_axes(tuple(wanted.shape[1:]))[0] + 1
        one, two = (values.detach().double().movedim(axis, -1).flatten(0, -2) for values in (wanted, found))
        chances, values = _chances(one), _chances(two)
        classes = chances.shape[1]
        self.mapped = wanted.dim() > 2
        own, other = chances.argmax(1), values.argmax(1)
        cost = (chances.gather(1, own[:, None]) - chances.gather(1, other[:, None]))[:, 0]
        self.count = self.count + torch.bincount(own, minlength=classes)
        self.other = self.other + torch.bincount(other, minlength=classes)
        self.same = self.same + torch.bincount(own[own == other], minlength=classes)
        place = torch.arange(len(wanted)).repeat_interleave(len(own) // len(wanted)).to(own)
        summed = torch.bincount(place * classes + own, cost, minlength=len(wanted) * classes)
        self.cost.append(summed.view(-1, classes))

    @property
    def agreement(self) -> float:
        return float(self.same.sum() / self.count.sum())

    @property
    def overlap(self) -> float:
        union = self.count + self.other - self.same
        return float((self.same / union)[union > 0].mean())

    def lost(self) -> tuple[float, float]:
        """Return what is lost; of maps and of yes and no the mean over classes, so that what is rare or thin counts."""
        cost, occurs = torch.cat(self.cost), self.count > 0
        alike = not self.mapped and len(self.count) > 2
        weight = torch.where(occurs, 1 / (self.count.sum() if alike else self.count * occurs.sum()), 0.0)
        each = cost @ weight.to(cost)
        return float(each.sum()), float(each.std() * math.sqrt(len(each))) if len(each) > 1 else float(each.sum())


def _chances(values: Tensor) -> Tensor:
    """Return the probabilities (M, classes) of rows of scores: as they are, or by a softmax or sigmoid."""
    bounded = bool(((values >= 0) & (values <= 1)).all())
    if values.shape[1] > 1 and not bounded:
        return values.softmax(1)
    if values.shape[1] > 1 and bool(((values.sum(1) - 1).abs() < 1e-3).all()):
        return values
    yes = (values if bounded else values.sigmoid()).reshape(-1, 1)
    return torch.cat([1 - yes, yes], 1)


def interval(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of so many."""
    z, n = _SURE, max(1, count)
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
