"""The fastest that is good enough, or the model as it was: on made-up milliseconds."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convsurgeon as cs
from convsurgeon import cli
from convsurgeon.fit.residual import added_share
from convsurgeon.graph.capture import Capture
from convsurgeon.runtime.latencies import NetworkTime
from convsurgeon.search import scores as rating
from convsurgeon.search.fastest import EVALUATIONS, WORTH
from convsurgeon.search.limit import ALLOWED_ADDED, Limit, limit_of
from convsurgeon.search.trial import _SLOW
from tests import nets
from tests.search.chain import DENSE, net

FORMS = [cs.DepthwiseSeparable(rank=rank) for rank in (1, 2, 3, 4)]
IMAGES = torch.randn(40, 8, 12, 12, generator=torch.Generator().manual_seed(1))
EXAMPLE = IMAGES[:1]


@dataclasses.dataclass(frozen=True)
class Table:
    """A share of the dense time per rank; the clock finds `company` times as much, all cores `cores` times."""

    each: float = 0.15
    company: tuple[float, float, float] = (1.0, 1.0, 1.0)
    cores: float = 1.0
    total_ms: float = 10.0

    def has(self, site: str, form: cs.Form | None) -> bool:
        return site in DENSE

    def ms(self, site: str, form: cs.Form | None) -> float:
        return DENSE[site] * (1.0 if form is None else self.each * int(getattr(form, "rank", 1)))

    def time(
        self, seen: Capture, plans: Sequence[cs.Plan], *, all_cores: bool = False, progress: bool
    ) -> tuple[NetworkTime, ...] | None:
        return tuple(self._whole(plan, self.cores if all_cores else 1.0) for plan in plans)

    def _whole(self, plan: cs.Plan, times: float) -> NetworkTime:
        slow = dict(zip(DENSE, self.company, strict=True))
        sites = {name: slow[name] * self.ms(name, change.form) for name, change in plan.changes.items()}
        return NetworkTime(times * (10.0 - sum(DENSE[name] for name in sites) + sum(sites.values())), sites)


def _nearness(model: nn.Module) -> float:
    """Higher is better: 100 for the original."""
    with torch.no_grad():
        wanted, got = net()(IMAGES), model(IMAGES)
    return 100 * (1 - float((wanted - got).square().sum() / wanted.square().sum()))


def _converted(table: Table, **choices: object) -> cs.Result:
    return cs.convert(
        net(), EXAMPLE, forms=FORMS, policy=cs.select.everything(), calibration=IMAGES, latencies=table, progress=False,
        **choices,  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_fastest_within_a_metric_is_found_with_few_evaluations() -> None:
    asked: list[float] = []

    def nearness(model: nn.Module) -> float:
        asked.append(_nearness(model))
        return asked[-1]

    result = _converted(Table(), metric=nearness, within=20.0)
    attempts = result.report.attempts
    (taken,) = (one for one in attempts if one.taken)
    assert len(asked) == 1 + len(attempts) <= 1 + EVALUATIONS
    assert [one.value for one in attempts] == asked[1:]
    assert taken.enough
    assert taken.value >= 100 - 20
    assert taken.predicted_ms == min(one.predicted_ms for one in attempts if one.enough)
    assert {one.enough for one in attempts} == {True, False}
    assert _nearness(result.model) == pytest.approx(taken.value)  # what was judged is what comes back
    assert "Search for the fastest within 20 of nearness (100)" in str(result.report)
    assert str(result.report).startswith(f"{taken.dense_ms / taken.predicted_ms:.2f} times as fast measured")
    (timing,) = (one for one in result.timings if one.taken)
    assert timing.measured_ms == pytest.approx(taken.predicted_ms)


@pytest.mark.parametrize(("better", "sign"), [("lower", 1), ("higher", -1)])
def test_what_is_spent_of_a_limit(better: str, sign: int) -> None:
    limit = Limit("figure", 10.0, 2.0, better)
    assert [limit.spent(10.0 + sign * lost) for lost in (-1.0, 0.0, 1.0, 2.0, 4.0)] == [-0.5, 0.0, 0.5, 1.0, 2.0]
    none = dataclasses.replace(limit, most=0.0)
    assert [none.spent(10.0 + sign * lost) for lost in (-1.0, 0.0, 1.0)] == [0.0, 0.0, math.inf]


def test_more_may_be_lost_is_faster() -> None:
    times = []
    for within in (15.0, "25%", 45.0):
        (taken,) = (one for one in _converted(Table(), metric=_nearness, within=within).report.attempts if one.taken)
        times.append(taken.predicted_ms)
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


def test_lower_is_better_where_it_is_said() -> None:
    lower = _converted(Table(), metric=lambda model: 100 - _nearness(model), within=20.0, better="lower")
    higher = _converted(Table(), metric=_nearness, within=20.0)
    assert lower.plan == higher.plan


def _same(result: cs.Result) -> bool:
    return not result.changes and torch.equal(result.model(EXAMPLE), net()(EXAMPLE))


@pytest.mark.parametrize(
    ("table", "choices", "why"),
    [
        (Table(each=0.9), {"within": 0.9}, r"whatever that loses, it would be 1\.\d\d times as fast by the table"),
        (
            Table(),
            {"metric": _nearness, "within": 1e-6},
            r"has _nearness \d+.*, allowed was 1e-06 of _nearness \(100\)",
        ),
        (Table(), {"within": 1e-9}, r"has output error .*, allowed was an error of 1e-09 of the output"),
        (Table(company=(7.0, 7.0, 7.0)), {"within": 0.5}, r"1\.00 times as fast measured, 1\.1 is worth it"),
        (Table(cores=20.0), {"within": 0.5}, r"with all cores, that is slower"),
    ],
    ids=["no gain", "metric", "error", "clock", "cores"],
)
def test_what_is_not_worth_it_comes_back_as_it_was(table: Table, choices: dict[str, object], why: str) -> None:
    result = _converted(table, **choices)
    assert _same(result)
    pattern = (
        rf"Left as it was: .*{why}; the time \(10 ms\) goes to 4 \(40%\), 2 \(30%\), 0 \(20%\), all else \(10%\)\."
    )
    assert re.fullmatch(pattern, result.report.speed), result.report.speed
    assert not any(one.taken for one in (*result.report.attempts, *result.timings))
    assert str(result.report).startswith("Left as it was")
    assert {skip.reason for skip in result.skipped} <= {"the network is not worth changing", _SLOW}


def test_a_layer_that_is_slower_in_company_goes_back() -> None:
    """Law 9, of the measured whole."""
    result = _converted(Table(company=(1.0, 9.0, 1.0)), within=0.9)
    assert set(result.changes) == {"0", "4"}
    assert [one.slower for one in result.timings] == [("2",), ()]
    assert result.timings[-1].dense_ms / result.timings[-1].measured_ms >= WORTH


def test_what_no_plan_would_take_is_not_rated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rating fits every candidate; those that are slower than dense are none."""
    rated: list[str] = []
    honest = rating.by_data

    def by_data(model: nn.Module, options: dict[str, list[cs.Change]], *others: object) -> object:
        rated.extend(change.form.label for changes in options.values() for change in changes)
        return honest(model, options, *others)  # type: ignore[arg-type]

    monkeypatch.setattr("convsurgeon.search.trial.by_data", by_data)
    result = _converted(Table(each=0.4), within=0.9)
    assert set(rated) == {"separable rank 1", "separable rank 2"}
    assert result.changes


def test_the_default_with_images_is_this_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise cs.ExportError("no ONNX form of this")

    default = cs.convert(
        net(), EXAMPLE, policy=cs.select.everything(), calibration=IMAGES, latencies=Table(), progress=False
    )
    assert default.report.attempts or "Left as it was" in default.report.speed
    monkeypatch.setattr("convsurgeon.runtime.table.LatencyTable.measure", refused)
    blind = cs.convert(net(), EXAMPLE, policy=cs.select.everything(), calibration=IMAGES, progress=False)
    assert blind.changes
    assert blind.report.speed == "Milliseconds are not known, forms were chosen by MACs: no ONNX form of this."
    with pytest.raises(cs.ExportError, match="no ONNX form"):
        cs.convert(net(), EXAMPLE, policy=cs.select.everything(), calibration=IMAGES, within=0.1, progress=False)


@pytest.mark.parametrize(
    ("choices", "error", "match"),
    [
        ({"metric": _nearness}, cs.BudgetError, "say how much of it may be lost"),
        ({"within": "much"}, cs.BudgetError, "'much': is no amount"),
        ({"within": -1.0}, cs.BudgetError, "is no amount"),
        ({"metric": lambda _: None, "within": 1.0}, cs.BudgetError, "gives a NoneType"),
        ({"metric": lambda _: float("nan"), "within": 1.0}, cs.BudgetError, "gives nan"),
        ({"within": 0.1, "better": "best"}, cs.BudgetError, "pass higher or lower"),
        ({"within": 0.1, "budget": cs.Budget(macs=0.5)}, cs.BudgetError, "goes with no budget"),
        ({"within": 0.1, "calibration": False}, cs.CalibrationError, "pass calibration, or leave it out"),
    ],
)
def test_what_is_no_limit_is_refused(choices: dict[str, object], error: type[Exception], match: str) -> None:
    given: dict[str, object] = {"calibration": IMAGES, "latencies": Table(), "progress": False, **choices}
    with pytest.raises(error, match=match):
        cs.convert(net(), EXAMPLE, **given)  # type: ignore[arg-type]


class _Denoiser(nn.Module):
    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.add = nn.Conv2d(8, 8, 3, padding=1), add

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, 0.01 * self.body(x))


def test_image_to_image_is_judged_by_what_is_added() -> None:
    example = cs.Example((IMAGES,))
    small = added_share(_Denoiser(lambda x, y: x - y), [example])
    assert 1e-6 < small < 1e-3
    large = added_share(_Denoiser(lambda x, y: F.interpolate(x - y, scale_factor=2.0, mode="bicubic")), [example])
    assert large == pytest.approx(small, rel=0.5)
    assert added_share(_Denoiser(lambda _, y: y), [example]) == 1.0  # nothing of the input is handed on
    assert added_share(net(), [example]) == 1.0  # other channels
    limit = limit_of(_Denoiser(lambda x, y: x - y), [example], None, None, "lower")
    assert (limit.scale, limit.most) == (pytest.approx(small, rel=0.2), ALLOWED_ADDED)
    assert "added to the input" in str(limit)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((40, 3, 12, 12), dtype=np.float32))
    (tmp_path / "mine.py").write_text("def score(model):\n    return 7.0\n")
    command = ["convert", f"{nets.__file__}:Plain", "--input", "1x3x12x12", "--rank", "1", "2", "--within", "1%"]
    images = ["--calibrate", str(tmp_path / "images.npy")]
    assert cli.main([*command, *images, "--metric", f"{tmp_path / 'mine.py'}:score"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Left as it was") or "Search for the fastest within 0.07 of score (7)" in printed
    assert cli.main([*command, "--calibrate", "none"]) == 1
    assert "pass calibration, or leave it out" in capsys.readouterr().err
    assert cli.main([*command, *images, "--budget", "macs=0.5"]) == 1
    assert "goes with no budget" in capsys.readouterr().err
