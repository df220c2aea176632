"""The error of a network's outputs against the original's: the one definition that everything compares and reports.

Squared error of every channel over that channel's variance on the images seen, averaged over channels, then over
outputs. So an output of box coordinates in pixels does not hide one of scores between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from convsurgeon.base.errors import CalibrationError
from convsurgeon.graph.outputs import pair_outputs

FEW = 32
"""Values of a channel below which all channels of an output share its overall variance."""
SMALL = 0.1
"""Least variance of a channel, as a share of the median channel's: a dead channel's errors do not count for all."""


class OutputError:
    """The error of one network's outputs against another's, added up batch by batch."""

    def __init__(self) -> None:
        self._moments: dict[tuple[int, int], _Moments] = {}

    def add(self, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        """Add the floating-point outputs of both networks for one batch, in the same order.

        Raises:
            CalibrationError: they have different shapes.
        """
        for index, (one, two) in enumerate(pair_outputs(wanted, found)):
            if one.numel():
                a, b = by_channel(one), by_channel(two)
                moments = self._moments.setdefault((index, len(a)), _Moments())
                moments.add(a)
                moments.wrong = moments.wrong + (a - b).square().sum(1)

    @property
    def value(self) -> float:
        """Return the error so far; infinite where an output is not finite.

        Raises:
            CalibrationError: nothing was compared.
        """
        if not self._moments:
            raise CalibrationError(
                "error: there is no floating-point output to compare; convert the part of the model before its "
                "integer outputs, or pass calibration=False"
            )
        error = sum(moments.error() for moments in self._moments.values()) / len(self._moments)
        return error if math.isfinite(error) else math.inf


def variances(answers: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the variances (C,) of the channels of every output, as the error is scaled by them; 1 for a constant.

    Args:
        answers: the outputs of the original for some batches.
    """
    found = []
    for column in zip(*answers, strict=True):
        rows = [by_channel(values.detach()) for values in column]
        alike = len({len(one) for one in rows}) == 1
        moments = _Moments()
        for one in rows:
            moments.add(one if alike else one.reshape(1, -1))
        own = moments.variances()
        found.append(torch.where(own == 0, 1.0, own).to(column[0].device))
    return found


def relative_error(found: Sequence[Tensor], wanted: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
    """Return the error as a loss: with constant variances, so the loss of a batch is the mean of its parts' losses.

    Args:
        found: a converted network's outputs.
        wanted: the original's.
        scales: from `variances`.
    """
    parts = []
    for (one, two), scale in zip(pair_outputs(wanted, found), scales, strict=True):
        dtype = torch.promote_types(one.dtype, torch.float32)
        squared = (two.to(dtype) - one.to(dtype)).square()
        channels = squared.dim() > 1 and len(scale) == squared.shape[1]
        own = scale.view(-1, *[1] * (squared.dim() - 2)) if channels else scale.mean()
        parts.append((squared / own.to(dtype)).mean())
    return torch.stack(parts).mean() if parts else torch.zeros(())


def by_channel(values: Tensor) -> Tensor:
    """Return the values in float64, a row for each channel: those along dimension 1, or one for all."""
    exact = values.double()
    return exact.transpose(0, 1).flatten(1) if exact.dim() > 1 else exact.reshape(1, -1)


class _Moments:
    """Sums over the values of every channel."""

    def __init__(self) -> None:
        self.count = 0
        zero = torch.zeros(1, dtype=torch.float64)
        self.total: Tensor = zero
        self.squares: Tensor = zero
        self.wrong: Tensor = zero

    def add(self, rows: Tensor) -> None:
        self.count += rows.shape[1]
        self.total = self.total.to(rows.device) + rows.sum(1)
        self.squares = self.squares.to(rows.device) + rows.square().sum(1)
        self.wrong = self.wrong.to(rows.device)

    def variances(self) -> Tensor:
        mean, power = self.total / self.count, self.squares / self.count
        own = (power - mean.square()).clamp(min=0)
        if self.count < FEW:
            own = (power.mean() - mean.mean().square()).clamp(min=0).expand_as(own)
        usual = float(own.median()) or float(own.mean()) or float(power.mean())
        return own.clamp(min=SMALL * usual)

    def error(self) -> float:
        ratios = self.wrong / self.count / self.variances()
        return float(torch.where(self.wrong == 0, 0.0, ratios).mean())
