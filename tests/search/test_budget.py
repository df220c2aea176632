"""Budgets: read, kept, refused where they cannot be; the whole network decides between plans."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs

FORMS = [cs.DepthwiseSeparable(rank=rank) for rank in (1, 2, 4)] + [cs.Blueprint(rank=rank) for rank in (1, 2)]
EXAMPLE = torch.zeros(1, 8, 16, 16)


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 24, 3, padding=1), nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 32, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(32, 10, 1),
    ).eval()  # fmt: skip


def _images(count: int = 40) -> Tensor:
    return torch.randn(count, 8, 16, 16, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Table:
    """Made-up milliseconds: the second conv gets slower in every form, the others faster."""

    total_ms: float = 10.0

    def time(self, *_: object, **__: object) -> None:
        return None

    def has(self, site: str, form: cs.Form | None) -> bool:
        return form is None or form.label != "separable rank 4"

    def ms(self, site: str, form: cs.Form | None) -> float:
        dense = {"0": 2.0, "2": 3.0, "5": 4.0}[site]
        return dense if form is None else dense * (1.2 if site == "2" else 0.2 * int(getattr(form, "rank", 1)))


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("macs=0.5", cs.Budget(macs=0.5)),
        ("macs=0.5,params=20M", cs.Budget(macs=0.5, params="20M")),
        ("params=20000", cs.Budget(params=20000)),
    ],
)
def test_budgets_are_read(text: str, budget: cs.Budget) -> None:
    assert cs.Budget.parse(text) == budget


@pytest.mark.parametrize(
    ("kind", "value", "limit"),
    [
        ("macs", 0.5, 500.0),
        ("macs", "1.5kMAC", 1500.0),
        ("macs", "3kFLOP", 1500.0),
        ("params", "2k", 2000.0),
        ("params", 300, 300.0),
        ("bytes", "1.5 MB", 1.5e6),
        ("latency", "12ms", 12.0),
        ("latency", "500us", 0.5),
        ("latency", 0.25, 250.0),
    ],
)
def test_limits_are_shares_or_have_units(kind: str, value: float | int | str, limit: float) -> None:
    budget = cs.Budget(**{kind: value})  # type: ignore[arg-type]
    assert budget.limits(lambda _: 1000.0) == {kind: pytest.approx(limit)}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "sets no limit"),
        ("macs", "cannot read 'macs'"),
        ("mac=0.5", "cannot read 'mac=0.5'"),
        ("macs=1.5", "more than all of it"),
        ("macs=-1", "is not a limit"),
        ("macs=nan", "is not a limit"),
        ("macs=twelve", "cannot be read"),
        ("latency=3 parsec", "cannot be read"),
        ("latency=3kms", "cannot be read"),
        ("macs=0.5,lost=0.1", "lost=0.1"),
        ("macs=0.5,macs=0.4", "cannot read 'macs=0.4'"),
        ("latency=faster", "cannot be read"),
    ],
)
def test_what_is_no_budget_is_refused(text: str, match: str) -> None:
    with pytest.raises(cs.errors.BudgetError, match=match):
        cs.Budget.parse(text)


@pytest.mark.parametrize(
    ("budget", "calibrated"),
    [
        *((cs.Budget(macs=0.4), False), (cs.Budget(params=0.5), False), (cs.Budget(bytes=0.6), False)),
        *((cs.Budget(macs=0.4), True), (cs.Budget(macs=0.5, params=0.4, bytes=0.9), True)),
    ],
    ids=str,
)
def test_budgets_are_kept(budget: cs.Budget, calibrated: bool) -> None:
    calibration = _images() if calibrated else False
    result = cs.convert(
        _net(),
        EXAMPLE,
        forms=FORMS,
        policy=cs.select.everything(),
        goal=budget,
        calibration=calibration,
        progress=False,
    )
    before, after = result.report.before, result.report.after
    counted = {"macs": after.macs, "params": after.params, "bytes": after.weight_bytes}
    whole = {"macs": before.macs, "params": before.params, "bytes": before.weight_bytes}
    for kind, limit in budget.limits(lambda kind: whole[kind]).items():
        assert counted[kind] <= limit
    assert {*result.changes, *(skip.name for skip in result.skipped)} == {"0", "2", "5", "7"}


def test_a_smaller_budget_never_loses_less() -> None:
    lost = []
    for share in (0.8, 0.5, 0.25):
        plan = cs.convert(
            _net(), EXAMPLE, forms=FORMS, policy=cs.select.everything(), goal=cs.Budget(macs=share), calibration=False
        ).plan
        lost.append(sum(change.lost or 0.0 for change in plan.changes.values()))
    assert lost == sorted(lost)


@pytest.mark.parametrize(
    ("policy", "budget", "match"),
    [
        (
            cs.select.everything(),
            cs.Budget(macs=0.01),
            r"macs of 0\.01 cannot be reached; the least is 0\.\d+, most of it",
        ),
        (
            cs.select.kernel_size(7),
            cs.Budget(params=0.01),
            r"params of 0\.01 .* the least is 1\.000, most of it in 5, 2, 0",
        ),
    ],
)
def test_an_impossible_budget_says_how_far_it_goes_and_what_stands_in_the_way(
    policy: cs.select.Policy, budget: cs.Budget, match: str
) -> None:
    with pytest.raises(cs.errors.BudgetError, match=match):
        cs.convert(_net(), EXAMPLE, forms=FORMS, policy=policy, goal=budget, calibration=False)


def test_with_a_latency_budget_no_chosen_layer_is_slower_than_dense() -> None:
    """Law 9."""
    table = Table()
    for budget in (cs.Budget(latency=0.6), cs.Budget(latency=0.7, macs=0.9)):
        result = cs.convert(
            _net(),
            EXAMPLE,
            forms=FORMS,
            policy=cs.select.everything(),
            goal=budget,
            runtime=cs.Runtime(table=table),
            calibration=False,
        )
        for name, change in result.changes.items():
            assert table.ms(name, change.form) < table.ms(name, None)
        assert "2" not in result.changes


def test_a_latency_budget_may_spend_macs_where_that_is_faster() -> None:
    """A head with one output is exact in two convs of 1.1 times its MACs, and often several times as fast."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 1, 3, padding=1)).eval()
    forms = [cs.DepthwiseSeparable(rank=1)]
    result = cs.convert(
        net,
        EXAMPLE,
        forms=forms,
        policy=cs.select.named("0"),
        goal=cs.Budget(latency=0.85),
        runtime=cs.Runtime(table=Table()),
        calibration=False,
    )
    assert result.changes["0"].macs_after > result.changes["0"].site.macs
    assert result.changes["0"].lost == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(result.model(_images()), net(_images()))
    with pytest.raises(cs.errors.FormError, match=r"1\.11 of its MACs"):
        cs.convert(net, EXAMPLE, forms=forms, policy=cs.select.named("0"), goal=cs.Budget(macs=1.0), calibration=False)


def test_a_latency_budget_measures_what_it_needs() -> None:
    """Here, in the runtime, once: the same call is planned from the cache."""
    first = _measured()
    assert "times as fast" in first.report.speed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convsurgeon.runtime.cache.BUSY", 2.0)  # a busy machine's figures stay
        patch.setattr("convsurgeon.runtime.table.measure_candidates", None)  # nothing is measured again
        again = _measured()
    assert again.trials[0].predicted_ms == first.trials[0].predicted_ms


def _measured() -> cs.Result:
    budget = cs.Budget(latency=0.95)
    return cs.convert(
        _net(), EXAMPLE, forms=FORMS, policy=cs.select.everything(), goal=budget, calibration=False, progress=False
    )


def test_a_table_that_is_handed_in_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsurgeon.runtime.table.measure_table", None)
    how = {"goal": cs.Budget(latency=0.6), "runtime": cs.Runtime(table=Table())}
    result = cs.convert(_net(), EXAMPLE, forms=FORMS, policy=cs.select.everything(), calibration=False, **how)
    assert result.report.speed.endswith("by the measured times of its layers.")


def test_a_budget_of_macs_says_what_the_milliseconds_are() -> None:
    result = cs.convert(
        _net(), EXAMPLE, forms=FORMS, policy=cs.select.everything(), goal=cs.Budget(macs=0.4), progress=False
    )
    assert re.match(r"\d+\.\d\d times as fast.*: .* ms instead of .*, measured in onnxruntime", result.report.speed)
