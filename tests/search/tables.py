"""Made-up milliseconds of the three convs of `chain.net`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import convsurgeon as cs
from convsurgeon.graph.capture import Capture
from convsurgeon.runtime.latencies import NetworkTime
from convsurgeon.timing.verdict import Verdict, Word
from tests.search.chain import DENSE


@dataclasses.dataclass
class MadeUpTable:
    """Each form takes `each` of the dense time per rank; a whole network takes `beside` times as much per layer.

    Args:
        each: share of the dense time per rank.
        beside: factor of every changed layer in a whole network.
        cores: interval of the speed-up with all cores, if that is known.
        busy: share of the processor that others take.
        spread: of a measurement.
        elsewhere: whether the table is of another machine, so that nothing can be timed.
    """

    each: float = 0.15
    beside: tuple[float, float, float] = (1.0, 1.0, 1.0)
    cores: tuple[float, float] | None = None
    busy: float = 0.0
    spread: float = 0.0
    elsewhere: bool = False
    precision: str = "fp32"
    total_ms: float = 10.0
    timed: int = 0

    def has(self, site: str, form: cs.Form | None) -> bool:
        return site in DENSE

    def ms(self, site: str, form: cs.Form | None) -> float:
        return DENSE[site] * (1.0 if form is None else self.each * int(getattr(form, "rank", 1)))

    def time(self, seen: Capture, plans: Sequence[cs.Plan], *, progress: bool = True) -> tuple[NetworkTime, ...] | None:
        if self.elsewhere:
            return None
        self.timed += 1
        return tuple(self.time_of(plan) for plan in plans)

    def with_all_cores(self, seen: Capture, plan: cs.Plan, *, progress: bool = True) -> Verdict | None:
        if self.cores is None:
            return None
        low, high = self.cores
        word: Word = "faster" if low > 1 else "slower" if high < 1 else "no measurable difference"
        return Verdict((low * high) ** 0.5, self.cores, 1.01, word)

    def time_of(self, plan: cs.Plan) -> NetworkTime:
        factors = dict(zip(DENSE, self.beside, strict=True))
        sites = {name: factors[name] * self.ms(name, change.form) for name, change in plan.changes.items()}
        rest = self.total_ms - sum(DENSE[name] for name in sites)
        slower = tuple(name for name, ms in sites.items() if ms * (1 - self.spread) > DENSE[name] * (1 + self.spread))
        return NetworkTime(rest + sum(sites.values()), sites, self.spread, slower, self.busy)
