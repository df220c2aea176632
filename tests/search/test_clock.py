"""Plans are made again where a whole network takes another time than its parts: on made-up milliseconds."""

from __future__ import annotations

import pytest
import torch

import convsurgeon as cs
from convsurgeon.runtime.latencies import NetworkTime, predict
from convsurgeon.search.clock import CorrectedTable
from convsurgeon.search.search import MOST_TIMINGS
from tests.search.chain import net
from tests.search.tables import MadeUpTable

FORMS = [cs.DepthwiseSeparable(rank=rank) for rank in (1, 2, 4)]
EXAMPLE = torch.zeros(1, 8, 16, 16)


def _converted(table: MadeUpTable, latency: float) -> cs.Result:
    return cs.convert(
        net(),
        EXAMPLE,
        forms=FORMS,
        policy=cs.select.everything(),
        goal=cs.Budget(latency=latency),
        runtime=cs.Runtime(table=table),
        calibration=False,
        progress=False,
    )


def test_a_plan_that_takes_what_was_predicted_is_timed_once() -> None:
    table = MadeUpTable(each=0.1)
    (trial,) = _converted(table, 0.5).trials
    assert table.timed == 1
    assert trial.taken
    assert trial.predicted_ms == pytest.approx(trial.measured_ms)


@pytest.mark.parametrize("factor", [1.5, 0.7])
def test_a_plan_whose_parts_do_not_add_up_is_made_again(factor: float) -> None:
    result = _converted(MadeUpTable(each=0.1, beside=(factor,) * 3), 0.5)
    first, *_, last = result.trials
    assert not first.agrees
    assert last.taken
    assert last.agrees
    assert last.keeps(5.0)
    if factor < 1:  # what was left is spent
        assert last.measured_ms > first.measured_ms


def test_noise_does_not_change_a_plan() -> None:
    (trial,) = _converted(MadeUpTable(each=0.1, beside=(1.1,) * 3, spread=0.08), 0.5).trials
    assert trial.taken
    assert trial.keeps(5.0)
    assert trial.measured_ms > 1.03 * trial.predicted_ms


def test_the_fastest_stands_where_no_network_meets_the_budget() -> None:
    table = MadeUpTable(each=0.1, beside=(4.0,) * 3)
    result = _converted(table, 0.2)
    assert table.timed <= MOST_TIMINGS
    (taken,) = (trial for trial in result.trials if trial.taken)
    assert not taken.keeps(2.0)
    assert taken.measured_ms == min(trial.measured_ms for trial in result.trials)


def test_a_table_of_another_machine_is_believed() -> None:
    result = _converted(MadeUpTable(each=0.1, beside=(4.0,) * 3, elsewhere=True), 0.2)
    assert not any(trial.is_timed for trial in result.trials)
    assert result.changes
    assert "by the measured times of its layers" in result.report.speed


def test_a_corrected_table_predicts_what_was_measured() -> None:
    table = MadeUpTable(each=0.1, beside=(1.1, 0.8, 1.3))
    plan = cs.plan(net(), EXAMPLE, forms=FORMS, policy=cs.select.everything())
    whole = table.time_of(plan)
    for total_ms in (whole.total_ms, whole.total_ms + 0.2):  # what the neighbours add counts, too
        once = CorrectedTable.of(table, plan, NetworkTime(total_ms, whole.sites))
        assert predict(once, plan) == pytest.approx(total_ms)
        again = CorrectedTable.of(once, plan, NetworkTime(total_ms + 0.1, whole.sites))
        assert predict(again, plan) == pytest.approx(total_ms + 0.1)
