"""What users measure, image by image, so that the difference of two networks has a standard error.

A metric is a table of an image's counts and what a whole table says: higher is better, in percent or dB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Counts = Callable[[Tensor, Tensor], Tensor]
_DRAWS = 400


@dataclass(frozen=True)
class Metric:
    """Counts of each image (N, k) by output and answer, what they say together, the unit, and what may be lost.

    `decide` gives the decisions that a user acts on, as integers of any shape; 0 is "nothing here" where `sparse`.
    """

    unit: str
    counts: Counts
    together: Callable[[Tensor], float]
    decide: Callable[[Tensor], Tensor] | None = None
    sparse: bool = False

    @property
    def allowed(self) -> float:
        """What may be lost in the mean: half a point, a tenth of a dB or of a point of AUC."""
        return 0.5 if self.unit == "%" else 0.1

    def of(self, output: Tensor, answer: Tensor) -> float:
        """Return the metric of one batch."""
        return self.together(self.counts(output, answer))

    def lost(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Return what is lost from one table of counts to another, and its standard error over images drawn anew."""
        draw = torch.Generator().manual_seed(0)
        picks = torch.randint(len(before), (_DRAWS, len(before)), generator=draw)
        drawn = torch.tensor([self.together(before[pick]) - self.together(after[pick]) for pick in picks])
        return self.together(before) - self.together(after), float(drawn.std())

    def stay(self, before: Tensor, after: Tensor) -> Tensor | None:
        """Return how many decisions stay, and of how many; of sparse ones only those that either network makes."""
        if self.decide is None:
            return None
        one, two = self.decide(before), self.decide(after)
        asked = (one > 0) | (two > 0) if self.sparse else torch.ones_like(one, dtype=torch.bool)
        return torch.tensor([int(((one == two) & asked).sum()), int(asked.sum())])


def _mean(counts: Tensor) -> float:
    return float(counts.double().mean())


def _ratio(counts: Tensor) -> float:
    """Return 100 times the first column's sum over the second's; with more columns the mean of such pairs."""
    over, under = counts.double().sum(0).view(-1, 2).unbind(1)
    return float(100 * (over / under.clamp(min=1e-9)).mean())


def _top1(output: Tensor, answer: Tensor) -> Tensor:
    return 100.0 * (_class(output) == answer)[:, None]


def _class(output: Tensor) -> Tensor:
    return output.argmax(1) if output.is_floating_point() else output


def _mask(output: Tensor, answer: Tensor) -> Tensor:
    hit, there = output.flatten(1) > 0, answer.flatten(1) > 0
    return torch.stack([(hit & there).sum(1), (hit | there).sum(1)], 1)


def _classes(output: Tensor, answer: Tensor) -> Tensor:
    """Return intersection and union of each class but the first."""
    found = output.argmax(1).flatten(1)
    parts = [_mask((found == kind).float(), (answer == kind).float()) for kind in range(1, output.shape[1])]
    return torch.cat(parts, 1)


def _boxes(output: Tensor, answer: Tensor) -> Tensor:
    """Return twice the right boxes, and all found and wanted: F1. Right is the class at an overlap of a half."""
    found, wanted = _kinds(output), _kinds(answer)
    right = (found > 0) & (found == wanted) & (_overlap(output[:, :4], answer[:, :4]) > 0.5)
    return torch.stack([2 * right.sum(1), (found > 0).sum(1) + (wanted > 0).sum(1)], 1)


def _kinds(output: Tensor) -> Tensor:
    """Return the class of each cell, 1 to 3; 0 where no score is above a half."""
    best, kind = output[:, 4:].max(1)
    return torch.where(best > 0.5, kind + 1, 0)


def _overlap(one: Tensor, two: Tensor) -> Tensor:
    low = torch.maximum(one[:, :2] - one[:, 2:] / 2, two[:, :2] - two[:, 2:] / 2)
    high = torch.minimum(one[:, :2] + one[:, 2:] / 2, two[:, :2] + two[:, 2:] / 2)
    both = (high - low).clamp(min=0).prod(1)
    return both / (one[:, 2:].prod(1) + two[:, 2:].prod(1) - both).clamp(min=1e-9)


def _peaks(output: Tensor, answer: Tensor) -> Tensor:
    """Return the share of peaks within two pixels of the image, whose maps have half its resolution."""
    return 100.0 * ((_peak(output) - _peak(answer)).norm(dim=-1) <= 1.01).double().mean(1, keepdim=True)


def _peak(maps: Tensor) -> Tensor:
    index = maps.flatten(2).argmax(2)
    return torch.stack([index % maps.shape[3], index // maps.shape[3]], -1).float()


def _points(output: Tensor, answer: Tensor) -> Tensor:
    """Return the share of points within three pixels."""
    return 100.0 * ((output - answer).norm(dim=-1) <= 3).double().mean(1, keepdim=True)


def _depth(output: Tensor, answer: Tensor) -> Tensor:
    return 100 - 100 * ((output - answer).abs() / answer).flatten(1).mean(1, keepdim=True)


def _psnr(output: Tensor, answer: Tensor) -> Tensor:
    off = (output.clamp(0, 1) - answer).double().square().flatten(1).mean(1, keepdim=True)
    return -10 * off.log10()


def _scored(output: Tensor, answer: Tensor) -> Tensor:
    return torch.cat([output.double(), answer.double()], 1)


def _auc(counts: Tensor) -> float:
    """Return the share of pairs of one image with and one without that the scores put right, in percent."""
    with_, without = (counts[counts[:, 1] == there, 0] for there in (1, 0))
    above = torch.searchsorted(without.sort().values, with_)
    return float(100 * above.double().mean() / len(without))


def _edges(output: Tensor, answer: Tensor) -> Tensor:
    """Return right and found, right and wanted at each of 19 thresholds, near a boundary within 0.0075 of the diagonal.

    `answer` (N, annotators, h, w); thin edges first: a pixel stays where it is the largest across one of four lines.
    """
    height, width = output.shape[-2:]
    reach = 0.0075 * (height**2 + width**2) ** 0.5
    size = int(reach)
    axis = torch.arange(-size, size + 1)
    disc = (torch.hypot(axis[:, None].float(), axis[None].float()) <= reach).float()[None, None]
    thin = _thinned(output)
    near = (F.conv2d(answer.float().amax(1, keepdim=True), disc, padding=size) > 0).float()
    rows = []
    for threshold in torch.arange(0.05, 0.951, 0.05):
        found = (thin > threshold).float()
        reached = (F.conv2d(found, disc, padding=size) > 0).float()
        sums = [
            (found * near).sum((1, 2, 3)),
            found.sum((1, 2, 3)),
            (answer * reached).sum((1, 2, 3)),
            answer.sum((1, 2, 3)),
        ]
        rows.append(torch.stack(sums, 1))
    return torch.stack(rows, 1).flatten(1)


def _thinned(output: Tensor) -> Tensor:
    """Keep what is largest across the edge, whose direction second differences of the smoothed map give."""
    smooth = F.avg_pool2d(output, 5, 1, 2, count_include_pad=False)
    pad = F.pad(smooth, (1, 1, 1, 1), mode="replicate")
    sides = [((0, 1), (2, 1)), ((1, 0), (1, 2)), ((0, 0), (2, 2)), ((0, 2), (2, 0))]
    h, w = output.shape[-2:]
    bends = torch.stack([sum(pad[..., y : y + h, x : x + w] for y, x in pair) - 2 * smooth for pair in sides])  # type: ignore[misc]
    bends[2:] /= 2
    own = F.pad(output, (1, 1, 1, 1))
    tops = torch.stack([torch.stack([own[..., y : y + h, x : x + w] for y, x in pair]).amax(0) for pair in sides])
    across = tops.gather(0, bends.argmin(0, keepdim=True))[0]
    return output * (output >= across)


def _best_f(counts: Tensor) -> float:
    right, found, met, wanted = counts.double().sum(0).view(19, 4).unbind(1)
    precision, recall = right / found.clamp(min=1), met / wanted.clamp(min=1)
    return float(100 * (2 * precision * recall / (precision + recall).clamp(min=1e-9)).max())


TOP1 = Metric("%", _top1, _mean, _class)
MASK = Metric("%", _mask, _ratio, lambda output: (output > 0).long(), sparse=True)
CLASSES = Metric("%", _classes, _ratio, lambda output: output.argmax(1), sparse=True)
BOXES = Metric("%", _boxes, _ratio, _kinds, sparse=True)
PEAKS = Metric("%", _peaks, _mean)
POINTS = Metric("%", _points, _mean)
DEPTH = Metric("%", _depth, _mean)
PSNR = Metric("dB", _psnr, _mean)
AUC = Metric("% AUC", _scored, _auc, lambda output: (output > 0).long())
EDGES = Metric("%", _edges, _best_f, lambda output: (output > 0.5).long(), sparse=True)
