"""The place where all that may be lost is lost, closed in on from both sides with few looks: each costs a network.

By halving, and by a power law through both sides once both are known: what is lost is nearly a power of the share of
the milliseconds that is kept. The search ends where nearly all that may be lost is.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

SPENT = 0.9
"""Share of the tolerance from which on it counts as used up."""

AIM = 0.96
"""Share of the tolerance that is aimed at."""

_INSIDE = 0.1
"""Share of the interval that the next place keeps from either side, so that no side stands still."""

CLOSE = 1.03
"""Ratio of the sides at which there is nothing left between them."""


@dataclass(frozen=True)
class Bracket:
    """Two positive places, in either order: at one of them the loss is small enough, at the other it is too large.

    `lost_good` and `lost_bad` are the losses there over the tolerance; None where nobody has looked yet.
    """

    good: float
    bad: float
    lost_good: float | None = None
    lost_bad: float | None = None

    @property
    def middle(self) -> float:
        """The place to look at next."""
        part = 0.5
        if self.lost_bad is not None and self.lost_good is not None and 0 < self.lost_good < self.lost_bad < math.inf:
            part = math.log(AIM / self.lost_good) / math.log(self.lost_bad / self.lost_good)
            part = min(max(part, _INSIDE), 1 - _INSIDE)
        return self.good * math.pow(self.bad / self.good, part)

    @property
    def inner(self) -> tuple[float, float]:
        """The sides without the margin that a next place keeps from them."""
        step = math.pow(self.bad / self.good, _INSIDE)
        return self.good * step, self.bad / step

    @property
    def closed(self) -> bool:
        """Whether the search may end."""
        near = max(self.good / self.bad, self.bad / self.good) <= CLOSE
        return near or (self.lost_good is not None and self.lost_good >= SPENT)

    def narrowed(self, place: float, lost: float, *, enough: bool) -> Bracket:
        """Return the bracket with one more place that was looked at."""
        if enough:
            return dataclasses.replace(self, good=place, lost_good=lost)
        return dataclasses.replace(self, bad=place, lost_bad=lost)
