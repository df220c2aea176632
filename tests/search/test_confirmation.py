"""Plans are revised where a whole network takes another time than its parts: on made-up milliseconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

import convsurgeon as cs
from convsurgeon.graph.capture import Capture
from convsurgeon.runtime.latencies import NetworkTime
from convsurgeon.search.choice import predicted
from convsurgeon.search.confirm import ROUNDS, Corrected
from tests.search.chain import DENSE, net

FORMS = [cs.DepthwiseSeparable(rank=rank) for rank in (1, 2, 4)]
EXAMPLE = torch.zeros(1, 8, 16, 16)


@dataclasses.dataclass
class Table:
    """A tenth of the dense time per rank; in company every changed layer takes `company` times as much."""

    company: dict[str, float]
    total_ms: float = 10.0
    timed: int = 0
    spread: float = 0.0
    elsewhere: bool = False

    def has(self, site: str, form: cs.Form | None) -> bool:
        return site in DENSE

    def ms(self, site: str, form: cs.Form | None) -> float:
        return DENSE[site] * (1.0 if form is None else 0.1 * int(getattr(form, "rank", 1)))

    def time(
        self, seen: Capture, plans: Sequence[cs.Plan], *, all_cores: bool = False, progress: bool
    ) -> tuple[NetworkTime, ...] | None:
        self.timed += not self.elsewhere
        return None if self.elsewhere else tuple(self._whole(plan) for plan in plans)

    def _whole(self, plan: cs.Plan) -> NetworkTime:
        sites = {name: self.company[name] * self.ms(name, change.form) for name, change in plan.changes.items()}
        return NetworkTime(self.total_ms - sum(DENSE[name] for name in sites) + sum(sites.values()), sites, self.spread)


def _converted(table: Table, **budget: float | str) -> cs.Result:
    limit = cs.Budget(**budget)  # type: ignore[arg-type]
    everywhere = cs.select.everything()
    return cs.convert(net(), EXAMPLE, forms=FORMS, policy=everywhere, budget=limit, latencies=table, calibration=False)


def test_a_plan_that_keeps_its_promise_is_timed_once() -> None:
    table = Table(dict.fromkeys(DENSE, 1.0))
    result = _converted(table, latency=0.5)
    (timing,) = result.timings
    assert table.timed == 1
    assert timing.taken
    assert timing.predicted_ms == pytest.approx(timing.measured_ms)
    assert "Whole networks, timed" in str(result.report)
    assert result.report.to_dict()["timed"][0]["taken"] == "yes"


@pytest.mark.parametrize("company", [1.5, 0.7])
def test_a_plan_whose_parts_do_not_add_up_is_revised(company: float) -> None:
    result = _converted(Table(dict.fromkeys(DENSE, company)), latency=0.5)
    first, *_, last = result.timings
    assert not first.agrees
    assert last.taken
    assert last.kept
    assert last.agrees
    assert last.measured_ms <= 5.0 * 1.03
    if company < 1:  # what was left is spent
        assert last.measured_ms > first.measured_ms
    assert "revised 1x" in result.report.timed.text()


def test_what_is_within_the_noise_is_not_revised() -> None:
    table = Table(dict.fromkeys(DENSE, 1.1), spread=0.08)
    (timing,) = _converted(table, latency=0.5).timings
    assert timing.taken
    assert timing.kept
    assert timing.measured_ms > 1.03 * timing.predicted_ms


def test_faster_puts_back_what_is_slower_in_company() -> None:
    """Law 9, of the measured whole."""
    result = _converted(Table({"0": 1.0, "2": 12.0, "4": 1.0}), latency="faster")
    assert set(result.changes) == {"0", "4"}
    first, last = result.timings
    assert first.slower == ("2",)
    assert last.kept
    assert last.taken


def test_the_fastest_stands_where_the_whole_never_keeps_the_budget() -> None:
    table = Table(dict.fromkeys(DENSE, 4.0))
    result = _converted(table, latency=0.2)
    assert table.timed <= ROUNDS
    (taken,) = (timing for timing in result.timings if timing.taken)
    assert not taken.kept
    assert taken.measured_ms == min(timing.measured_ms for timing in result.timings)


def test_a_table_of_another_machine_is_believed() -> None:
    result = _converted(Table(dict.fromkeys(DENSE, 4.0), elsewhere=True), latency=0.2)
    assert result.timings == ()
    assert result.changes


def test_a_corrected_table_predicts_what_was_measured() -> None:
    table = Table({"0": 1.1, "2": 0.8, "4": 1.3})
    plan = cs.plan(net(), EXAMPLE, forms=FORMS, policy=cs.select.everything())
    whole = table._whole(plan)
    for total_ms in (whole.total_ms, whole.total_ms + 0.2):  # what the neighbours add is theirs, too
        once = Corrected.by(table, plan, NetworkTime(total_ms, whole.sites))
        assert predicted(once, plan) == pytest.approx(total_ms)
        again = Corrected.by(once, plan, NetworkTime(total_ms + 0.1, whole.sites))
        assert predicted(again, plan) == pytest.approx(total_ms + 0.1)
