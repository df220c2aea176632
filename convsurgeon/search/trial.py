"""One plan that was tried: what it costs, what it loses, and whether it was taken."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convsurgeon.planning.plan import Plan
from convsurgeon.runtime.latencies import NetworkTime
from convsurgeon.timing.verdict import half_width

TOLERANCE = 0.03
"""Share by which a measured network may differ from its prediction; more where the machine is noisier."""


@dataclass(frozen=True)
class Trial:
    """One plan, carried out or timed; nan where a figure was not looked at.

    Args:
        plan: what becomes of every conv.
        dense_ms: of the original.
        predicted_ms: of the converted network, by the latency table.
        network: what the whole converted network took, where it was timed.
        error: relative error of the output on held-out images.
        lost: share of right decisions lost there, by the original's own probabilities.
        value: what the goal looks at: the user's metric, or the larger of both in the unit of the tolerance.
        spent: share of the goal's tolerance that it uses up.
        good_enough: whether the goal allows it.
        taken: whether it is the plan that was carried out.
        why: it was not, in a few words.
        seconds: that the trial took.
    """

    plan: Plan
    dense_ms: float = math.nan
    predicted_ms: float = math.nan
    network: NetworkTime | None = None
    error: float = math.nan
    lost: float = math.nan
    value: float = math.nan
    spent: float = math.nan
    good_enough: bool = True
    taken: bool = False
    why: str = ""
    seconds: float = math.nan

    @property
    def measured_ms(self) -> float:
        """Milliseconds of the converted network, timed as a whole; nan where it was not."""
        return math.nan if self.network is None else self.network.total_ms

    @property
    def slower(self) -> tuple[str, ...]:
        """Changed layers that took longer than the dense ones in that measurement."""
        return () if self.network is None else self.network.slower

    @property
    def interval(self) -> tuple[float, float]:
        """Where the speed-up lies; its low end is never above the speed-up by the table.

        What else runs on a shared machine may stay for longer than one measurement; the table is another measurement.
        """
        speedup, spread = math.log(self.speed_up), min(self.spread, 0.999)
        low = math.exp(speedup - half_width(speedup, math.log1p(spread)))
        high = math.exp(speedup + half_width(speedup, -math.log1p(-spread)))
        return min(low, self.dense_ms / self.predicted_ms), high

    @property
    def spread(self) -> float:
        """Spread of that measurement, as a share."""
        return 0.0 if self.network is None else self.network.spread

    @property
    def tolerance(self) -> float:
        """What counts as no difference of milliseconds, as a share."""
        return max(TOLERANCE, self.spread)

    @property
    def is_timed(self) -> bool:
        """Whether the whole network was timed."""
        return self.network is not None

    @property
    def agrees(self) -> bool:
        """Whether the measurement is as predicted but for noise, and no layer is slower than before."""
        return abs(self.measured_ms / self.predicted_ms - 1) <= self.tolerance and not self.slower

    @property
    def speed_up(self) -> float:
        """How many times as fast as the original, measured if it was, else predicted."""
        return self.dense_ms / (self.measured_ms if self.is_timed else self.predicted_ms)

    def keeps(self, limit_ms: float) -> bool:
        """Return whether the measured network is within a limit, faster than before, and has no slower layer."""
        return self.measured_ms <= min(limit_ms, self.dense_ms) * (1 + self.tolerance) and not self.slower
