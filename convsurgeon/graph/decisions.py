"""What a network decides by its outputs, against what another decides.

A vector of scores, or one at every place of a map, is decided by its largest channel; a single channel, and channels
that are each between 0 and 1, by whether they are above their middle. Outputs that measure something (coordinates, a
depth, a colour, a heat map) have the same shapes: decisions are those that tell images or places apart with confidence,
as probabilities. What changed decisions cost in accuracy is estimated without labels, as if the original's
probabilities were right: for one decision an image by how much less likely the other's choice is than its own, and as a
share of the changed ones at least; for maps by the intersection over union that is to be expected. Where there is one
decision an image, few images hold few that change: so each is also decided with the errors that the other network makes
on other images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from convsurgeon.graph.output_error import channel_axes

_SURE = 1.96
"""Standard deviations of a 95 % interval."""
_SHIFTS = 32
"""Images whose errors are tried on each image."""
_LEAST = 1e-30
_CHANGED = 0.13
"""Share of the changed choices that cost a right one, at least: probabilities say too little of a network that is less
sure of itself than it is right."""
_TOLD = 0.25
"""Share of the entropy of what is chosen that an output of decisions takes away, at least."""
_STEEP = 30.0
"""Logarithm of the ratio of the two largest probabilities above which values are not scores: coordinates in pixels."""
_SURE_OF = 0.8
"""Probability that most of what is above the middle has; heat maps, depths and coordinates have less."""


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
        alone = len(every) == 1 and not every[0].mapped and every[0].decide
        return every[0].agreement if alone else None

    @property
    def overlap(self) -> float | None:
        """Of decisions at every place of a map, intersection over union, the mean over classes; None without maps."""
        return min((sums.overlap for sums in self._deciding() if sums.mapped), default=None)

    @property
    def lost(self) -> float:
        """Return the share of right decisions that are lost, by the original's own probabilities."""
        return self.with_doubt()[0]

    def with_doubt(self) -> tuple[float, float]:
        """Return the share that is lost, and its standard error over images."""
        return max((sums.lost() for sums in self._deciding()), default=(0.0, 0.0))

    def _deciding(self) -> list[_Sums]:
        return [sums for sums in self._outputs.values() if sums.decide]


class _Sums:
    """Sums over the decisions by one output, of every image and class."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        """(5, classes): how often both networks choose a class, and the original's chances of it there, and in all."""
        self.same: Tensor = torch.zeros((), dtype=torch.float32, device="cpu")
        self.mapped = self.alike = False
        self.kind = ""
        self.entropy = 0.0
        self.steep = self.high = self.sure = 0
        """Places where the two largest probabilities are far apart, that are above the middle, and surely so."""
        self.chances: list[Tensor] = []
        """(2, classes) of every image that has one decision: those of both networks."""

    def add(self, wanted: Tensor, found: Tensor) -> None:
        axis = channel_axes(tuple(wanted.shape[1:]))[0] + 1
        self.mapped = wanted.dim() > 2
        self.kind = self.kind or _kind(wanted.detach().movedim(axis, -1).flatten(0, -2))
        for pair in zip(wanted.detach().split(1), found.detach().split(1), strict=True):
            one, two = (values.double().movedim(axis, -1).flatten(0, -2) for values in pair)
            chances, others = _chances(one, self.kind), _chances(two, self.kind)
            self._count(chances)
            own, other, classes = chances.argmax(1), others.argmax(1), chances.shape[1]
            sums = [chances.sum(0)]
            for picks in (own, other):
                likely = chances.gather(1, picks[:, None])[:, 0]
                sums += [torch.bincount(picks, minlength=classes), torch.bincount(picks, likely, minlength=classes)]
            self.images.append(torch.stack([one.double() for one in sums]))
            self.same = self.same + torch.bincount(own[own == other], minlength=classes)
            self.alike = not self.mapped and classes > 2
            self.chances += [torch.cat([chances, others])] * self.alike

    def _count(self, chances: Tensor) -> None:
        """Add what tells decisions from measures."""
        first, second = chances.topk(2).values.clamp_min(_LEAST).unbind(1)
        self.entropy += float(torch.special.entr(chances).sum())
        self.steep += int((first > second * math.exp(_STEEP)).sum())
        self.high += int((chances[:, -1] > 0.5).sum())
        self.sure += int((chances[:, -1] > _SURE_OF).sum())

    @property
    def decide(self) -> bool:
        """Whether the original's values are decisions, and not measures."""
        whole, count = torch.stack(self.images)[:, :2].sum(0)
        places = float(count.sum())
        most = float(torch.special.entr(whole / places).sum())
        told = most > 0 and 1 - self.entropy / places / most >= _TOLD
        if self.kind in ("chances", "logits"):
            return told and 2 * self.sure >= self.high
        return told and 2 * self.steep <= places

    @property
    def agreement(self) -> float:
        return float(self.same.sum() / torch.stack(self.images)[:, 1].sum())

    @property
    def overlap(self) -> float:
        own, other = torch.stack(self.images)[:, (1, 3)].sum(0)
        union = own + other - self.same
        return float((self.same / union)[union > 0].mean())

    def lost(self) -> tuple[float, float]:
        """Return the accuracy that is lost; of maps and of yes and no the intersection over union, mean over classes.

        With its standard error over images, to first order.
        """
        found = torch.stack(self.images)  # (images, 5, classes)
        return self._right_lost(found) if self.alike else _overlap_lost(found)

    def _right_lost(self, found: Tensor) -> tuple[float, float]:
        """Return the largest of three estimates: exchanged errors, how many choices change, and what surely is lost."""
        each, moved = self._exchanged()
        counted = (found[:, 2] - found[:, 4]).sum(1)
        sure = float(counted.mean()) - _SURE * _standard_error(counted) if len(counted) > 1 else 0.0
        return max(float(each.mean()), float(moved.mean()), sure), _standard_error(each)

    def _exchanged(self) -> tuple[Tensor, Tensor]:
        """Return what every image loses, by probabilities and by changed choices.

        Means over the errors of several images, its own among them.
        """
        chances, others = torch.stack(self.chances, 1)
        scores = chances.clamp_min(_LEAST).log()
        errors = others.clamp_min(_LEAST).log() - scores
        own, choice = chances.max(1)
        each, moved = torch.zeros_like(own), torch.zeros_like(own)
        tried = range(0, len(own), max(1, len(own) // _SHIFTS))
        for shift in tried:
            picks = (scores + errors.roll(shift, 0)).argmax(1)
            each += own - chances.gather(1, picks[:, None])[:, 0]
            moved += picks != choice
        return each / len(tried), _CHANGED * moved / len(tried)


def _overlap_lost(found: Tensor) -> tuple[float, float]:
    """Return what is lost of the intersection over union that is to be expected, and its standard error."""
    whole, count, right, other, hit = found.unbind(1)
    parts = []
    for inside, picked in ((right, count), (hit, other)):
        union = whole + picked - inside
        share = inside.sum(0) / union.sum(0).clamp_min(1e-300)
        parts.append((share, (inside - share * union) / union.sum(0).clamp_min(1e-300)))
    occurs = count.sum(0) > 0
    lost = float((parts[0][0] - parts[1][0])[occurs].mean())
    shifts = (parts[0][1] - parts[1][1])[:, occurs].mean(1)
    return lost, float(shifts.std()) * math.sqrt(len(shifts)) if len(shifts) > 1 else lost


def _standard_error(each: Tensor) -> float:
    """Return the standard error of a mean over images; of one image that is as large."""
    return float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else float(each.mean())


def _kind(values: Tensor) -> str:
    """Return what an output's values are: scores or shares of one choice, or chances or scores of several yes or no."""
    bounded = bool(((values >= 0) & (values <= 1)).all())
    if values.shape[1] > 1 and not bounded:
        return "scores"
    if values.shape[1] > 1 and bool(((values.sum(1) - 1).abs() < 0.01).all()):
        return "shares"
    return "chances" if bounded else "logits"


def _chances(values: Tensor, kind: str) -> Tensor:
    """Return the probabilities (M, classes) of rows of such values."""
    if kind == "scores":
        return values.softmax(1)
    if kind == "shares":
        return values.clamp(0, 1)
    yes = (values.clamp(0, 1) if kind == "chances" else values.sigmoid()).reshape(-1, 1)
    return torch.cat([1 - yes, yes], 1)


def interval(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of so many."""
    z, n = _SURE, max(1, count)
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
