"""The fastest network that loses little, or the model as it was: on made-up milliseconds."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convsurgeon as cs
from convsurgeon import cli
from convsurgeon.distill.loss import OutputJudge
from convsurgeon.fit.fidelity import added_share
from convsurgeon.runtime.latencies import NetworkTime
from convsurgeon.search import search, study
from convsurgeon.search.goal import DEFAULT_DECISIONS, DEFAULT_ERROR_ADDED
from convsurgeon.search.outcome import NOT_WORTH_IT
from convsurgeon.search.search import MOST_TRIALS, WORTH
from convsurgeon.search.trial import Trial
from tests import nets
from tests.search.chain import net
from tests.search.tables import MadeUpTable

pytestmark = pytest.mark.filterwarnings("ignore:.*images are few")
FORMS = [cs.DepthwiseSeparable(rank=rank) for rank in (1, 2, 3, 4)]
IMAGES = torch.randn(40, 8, 12, 12, generator=torch.Generator().manual_seed(1))
EXAMPLE = IMAGES[:1]


def nearness(model: nn.Module) -> float:
    """Higher is better: 100 for the original."""
    with torch.no_grad():
        wanted, got = net()(IMAGES), model(IMAGES)
    return 100 * (1 - float((wanted - got).square().sum() / wanted.square().sum()))


def converted(table: Any, goal: cs.Within | cs.Budget | None = None, **choices: Any) -> cs.Result:
    runtime = cs.Runtime(table=table, precision=table.precision)
    given = {"forms": FORMS, "policy": cs.select.everything(), "calibration": IMAGES, "progress": False, **choices}
    return cs.convert(net(), EXAMPLE, goal=goal, runtime=runtime, **given)


def test_the_fastest_within_a_metric_is_found_with_few_trials() -> None:
    asked: list[float] = []

    def near(model: nn.Module) -> float:
        asked.append(nearness(model))
        return asked[-1]

    result = converted(MadeUpTable(), cs.Within(20.0, metric=near))
    (taken,) = (trial for trial in result.trials if trial.taken)
    assert len(asked) == 1 + len(result.trials) <= 1 + MOST_TRIALS
    assert [trial.value for trial in result.trials] == asked[1:]
    assert taken.good_enough
    assert taken.value >= 100 - 20
    assert taken.predicted_ms == min(trial.predicted_ms for trial in result.trials if trial.good_enough)
    assert {trial.good_enough for trial in result.trials} == {True, False}
    assert nearness(result.model) == pytest.approx(taken.value)  # what was judged is what comes back
    assert taken.measured_ms == pytest.approx(taken.predicted_ms)
    assert f"{taken.speed_up:.2f} times as fast" in str(result.report)
    assert taken.spent == pytest.approx((100 - taken.value) / 20)
    tried = result.report.tried.filled()
    assert "near of at least 80" in tried.title
    spent, kept = (tried.headers.index(name) for name in ("spent", "good_enough"))
    assert all((row[spent] <= 1) == (row[kept] == "yes") for row in tried.rows)


@pytest.mark.parametrize(("better", "sign"), [("lower", 1), ("higher", -1)])
def test_the_tolerance_that_is_spent(better: str, sign: int) -> None:
    goal = cs.Within(2.0, metric=lambda _: 10.0, better=better).resolve(net())
    assert [goal.spent(10.0 + sign * lost) for lost in (-1.0, 0.0, 1.0, 2.0, 4.0)] == [-0.5, 0.0, 0.5, 1.0, 2.0]
    none = cs.Within(0.0, metric=lambda _: 10.0, better=better).resolve(net())
    assert [none.spent(10.0 + sign * lost) for lost in (-1.0, 0.0, 1.0)] == [0.0, 0.0, math.inf]


def test_a_larger_tolerance_is_faster() -> None:
    times = []
    for tolerance in (15.0, "25%", "45%"):
        result = converted(MadeUpTable(), cs.Within(tolerance, metric=nearness))
        times += [trial.predicted_ms for trial in result.trials if trial.taken]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


def test_lower_may_be_better() -> None:
    lower = converted(MadeUpTable(), cs.Within(20.0, metric=lambda model: 100 - nearness(model), better="lower"))
    assert lower.plan == converted(MadeUpTable(), cs.Within(20.0, metric=nearness)).plan


@pytest.mark.parametrize(
    ("table", "goal", "why"),
    [
        (MadeUpTable(each=0.9), cs.Within(0.9), "in its fastest form"),
        (MadeUpTable(), cs.Within(1e-6, metric=nearness), "has nearness"),
        (MadeUpTable(), cs.Within(1e-9), "has output error"),
        (MadeUpTable(beside=(7.0, 7.0, 7.0)), cs.Within(0.5), "the best plan is measured 0.3"),
        (MadeUpTable(cores=(0.9, 0.97)), cs.Within(0.5), "with all cores"),
    ],
    ids=["no gain", "metric", "error", "clock", "cores"],
)
def test_a_network_that_is_not_worth_it_comes_back_as_it_was(table: MadeUpTable, goal: cs.Within, why: str) -> None:
    result = converted(table, goal)
    assert not result.changes
    assert torch.equal(result.model(EXAMPLE), net()(EXAMPLE))
    assert result.report.speed.startswith("Left as it was")
    assert why in result.report.speed
    assert re.search(r"4 \(40%\), 2 \(30%\), 0 \(20%\), all else \(10%\)", result.report.speed)
    assert not any(trial.taken for trial in result.trials)
    assert {skip.reason for skip in result.skipped} <= {NOT_WORTH_IT, study.NOT_FASTER}


def test_a_tolerance_that_forgot_its_metric_is_refused() -> None:
    with pytest.raises(cs.errors.BudgetError, match="metric"):
        cs.Within(1.0)


def test_a_layer_that_is_slower_beside_the_others_goes_back() -> None:
    """Law 9, of the measured whole."""
    result = converted(MadeUpTable(beside=(1.0, 9.0, 1.0)), cs.Within(0.99))
    assert set(result.changes) == {"0", "4"}
    timed = [trial for trial in result.trials if trial.is_timed]
    assert [trial.slower for trial in timed] == [("2",), ()]
    assert timed[-1].taken
    assert timed[-1].speed_up >= WORTH


@pytest.mark.parametrize(
    "table",
    [
        MadeUpTable(beside=(1.0, 3.5, 1.0), spread=0.6),  # a layer that noise may have slowed
        MadeUpTable(each=0.1, beside=(6.0, 6.0, 6.0), spread=0.25),  # perhaps worth it, perhaps not
        MadeUpTable(cores=(0.7, 1.2)),  # slower with all cores, or not
    ],
    ids=["layer", "whole", "cores"],
)
def test_noise_throws_nothing_away(table: MadeUpTable) -> None:
    """Law 12: only an interval that lies on one side decides."""
    result = converted(table, cs.Within(0.99))
    assert result.changes
    assert not result.report.speed.startswith("Left as it was")


def test_what_a_layer_that_goes_back_frees_is_spent_on_the_others() -> None:
    """And the figures are of the plan that ships."""
    result = converted(MadeUpTable(beside=(1.0, 9.0, 1.0)), cs.Within(0.9))
    first, *_ = (trial for trial in result.trials if trial.is_timed)
    (taken,) = (trial for trial in result.trials if trial.taken)
    assert "2" in first.plan.changes
    assert set(taken.plan.changes) == {"0", "4"}
    without = first.plan.without({"2": ""})
    assert taken.predicted_ms < MadeUpTable().time_of(without).total_ms
    assert taken.good_enough
    assert taken.value == pytest.approx(result.report.reconstruction.error_after, rel=0.3)  # type: ignore[union-attr]
    assert f"{taken.speed_up:.2f} times as fast: {taken.measured_ms:.3g} ms" in result.report.speed


def test_what_was_not_taken_is_listed_with_the_reason() -> None:
    result = converted(MadeUpTable(beside=(7.0, 7.0, 7.0)), cs.Within(0.5))
    assert "result.alternatives" in result.report.speed
    first, *others = result.alternatives
    assert first.good_enough
    assert first.why in result.report.speed
    assert all(one.why and not one.taken for one in (first, *others))
    made = cs.convert(net(), EXAMPLE, forms=first.plan, calibration=IMAGES, progress=False)
    assert set(made.changes) == set(first.plan.changes)


def test_a_busy_machine_weakens_the_words() -> None:
    """It leaves the plan as it is."""
    quiet, sure, unsure = (
        converted(MadeUpTable(busy=busy, spread=spread), cs.Within(0.5))
        for busy, spread in ((0.0, 0.0), (0.8, 0.01), (0.8, 0.2))
    )
    assert quiet.plan == sure.plan == unsure.plan
    assert "busy" not in sure.report.speed
    (taken,) = (trial for trial in unsure.trials if trial.taken)
    assert unsure.report.speed.startswith(f"At least {taken.interval[0]:.2f} times as fast")
    assert "the machine was busy" in unsure.report.speed


def test_a_layer_that_is_only_suspected_stays() -> None:
    """The whole decides."""

    class Whole(MadeUpTable):
        def time_of(self, plan: cs.Plan) -> NetworkTime:
            found = super().time_of(plan)
            return dataclasses.replace(found, slower=("2",) if "2" in plan.changes else ())

    result = converted(Whole(), cs.Within(0.9))
    assert "2" in result.changes
    assert len([trial for trial in result.trials if trial.is_timed]) == 1


def test_candidates_that_are_not_faster_are_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A score takes a fit."""
    scored: list[str] = []
    honest = study.score_by_data

    def score_by_data(model: nn.Module, options: dict[str, list[cs.Change]], *others: Any, **more: Any) -> Any:
        scored.extend(change.form.label for changes in options.values() for change in changes)
        return honest(model, options, *others, **more)

    monkeypatch.setattr(study, "score_by_data", score_by_data)
    assert converted(MadeUpTable(each=0.4), cs.Within(0.9)).changes
    assert set(scored) == {"separable rank 1", "separable rank 2"}


def test_the_default_with_images_is_this_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise cs.errors.ExportError("no ONNX form of this")

    default = converted(MadeUpTable(), forms=None)
    assert default.trials or "Left as it was" in default.report.speed
    monkeypatch.setattr(cs.Runtime, "measure", refuse)
    by_macs = cs.convert(net(), EXAMPLE, policy=cs.select.everything(), calibration=IMAGES, progress=False)
    assert "Milliseconds are not known" in by_macs.report.speed
    assert "no ONNX form of this" in by_macs.report.speed
    with pytest.raises(cs.errors.ExportError):
        cs.convert(net(), EXAMPLE, calibration=IMAGES, goal=cs.Within(0.1), progress=False)


@pytest.mark.parametrize(
    ("make", "offender"),
    [
        (lambda: cs.Within("much"), "much"),
        (lambda: cs.Within(-1.0), "-1.0"),
        (lambda: cs.Within(0.1, better="best"), "best"),
        (lambda: resolved(1.0, None), "NoneType"),
        (lambda: resolved(1.0, math.nan), "nan"),
        (lambda: resolved(1.0, torch.ones(2, 3)), "Tensor of shape (2, 3)"),
        (lambda: resolved(1.0, {"iou": 0.9}), "dict"),
        (lambda: resolved(1.0, "0.9"), "0.9"),
        (lambda: resolved(1.0, 0.9266), "'1%'"),  # a metric up to 1, and a point of it meant
        (lambda: resolved(0.5, 0.371), "0.005"),
        (lambda: resolved(1.0, 0.08, "lower"), "0.01"),
        (lambda: resolved(None, 0.0), "is 0"),
    ],
)
def test_a_tolerance_that_cannot_be_read_is_refused(make: Callable[[], cs.Within], offender: str) -> None:
    with pytest.raises(cs.errors.BudgetError, match=re.escape(offender)) as caught:
        make()
    assert "\n" not in str(caught.value)


def resolved(tolerance: float | str | None, value: Any, better: str = "higher") -> cs.Within:
    """A goal with a metric that always gives this value."""
    return cs.Within(tolerance, metric=lambda _: value, better=better).resolve(net())


def test_a_metric_without_a_tolerance_has_the_defaults() -> None:
    """Half a point, a tenth of a decibel: a small part of the metric's own value, whatever its unit."""
    for value, most in ((92.66, 0.5), (0.9266, 0.005), (33.0, 0.1)):
        found = resolved(None, value)
        assert 0.3 * most <= found.most <= most
        assert found.keeps(value - 0.9 * found.most)
        assert not found.keeps(value - 1.1 * found.most)
    assert resolved(None, 0.05, "lower").most == pytest.approx(0.001)
    assert resolved("200%", 0.9).most == pytest.approx(1.8)  # said in so many words
    assert resolved(torch.tensor(0.01).item(), torch.tensor(0.9)).most == pytest.approx(0.01)


def test_a_metric_alone_decides_and_is_asked_once_of_each_network() -> None:
    asked: list[nn.Module] = []

    def near(model: nn.Module) -> float:
        asked.append(model)
        assert not model.training
        return nearness(model)

    result = converted(MadeUpTable(), cs.Within("30%", metric=near))
    assert len(asked) == len({id(model) for model in asked}) == 1 + len(result.trials)
    ((name, before, after),) = result.report.metrics
    assert (name, before, after) == ("near", 100.0, pytest.approx(nearness(result.model)))
    strict = converted(MadeUpTable(), cs.Within(metric=near))
    assert strict.report.metrics[0][2] >= 99.7
    asked.clear()
    with pytest.raises(cs.errors.BudgetError, match="near"):
        converted(MadeUpTable(), cs.Within(90.0, metric=near), calibration=[torch.full((2, 3), math.nan)])
    assert len(asked) == 1  # before anything was read


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_a_metric_whose_better_is_the_other_ruins_nothing(better: str) -> None:
    def reversed_one(model: nn.Module) -> float:
        return nearness(model) ** 9 if better == "lower" else 101.0 - nearness(model)

    with pytest.raises(
        cs.errors.BudgetError, match=f"reversed_one.*--better {'lower' if better == 'higher' else 'hi'}"
    ):
        converted(MadeUpTable(), cs.Within(metric=reversed_one, better=better))


def test_nothing_to_rewrite_within_anything() -> None:
    images = torch.randn(40, 3, 4, 4)
    for model in (nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), nn.Sequential(nn.Conv2d(3, 4, 1))):
        for goal in (cs.Within(0.1), cs.Within(metric=lambda _: 7.0)):
            for given in (images, None):
                result = cs.convert(model.eval(), images[:1], calibration=given, goal=goal, progress=False)
                assert not result.changes
                assert result.report.speed.startswith("Left as it was")


def test_a_tolerance_needs_images_and_something_to_choose() -> None:
    with pytest.raises(cs.errors.CalibrationError):
        converted(MadeUpTable(), cs.Within(0.1), calibration=False)
    with pytest.raises(cs.errors.BudgetError):
        converted(MadeUpTable(), cs.Within(0.1), forms={"0": cs.DepthwiseSeparable(rank=1)})


class _Denoiser(nn.Module):
    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.add = nn.Conv2d(8, 8, 3, padding=1), add

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, 0.01 * self.body(x))


def _share_of(model: nn.Module, example: cs.Example) -> float:
    judge = OutputJudge(model.eval(), [example])
    return added_share(judge.batches, judge.answers)


def _usual(model: nn.Module, images: Tensor, tolerance: float | None = None) -> cs.Within:
    return cs.Within(tolerance).resolve(model, OutputJudge(model, [cs.Example((images,))]))


def test_image_to_image_is_judged_by_what_is_added() -> None:
    example = cs.Example((IMAGES,))
    small = _share_of(_Denoiser(lambda x, y: x - y), example)
    assert 1e-6 < small < 1e-3
    large = _share_of(_Denoiser(lambda x, y: F.interpolate(x - y, scale_factor=2.0, mode="bicubic")), example)
    assert large == pytest.approx(small, rel=0.5)
    assert _share_of(_Denoiser(lambda _, y: y), example) > 0.5  # little of the input is handed on
    assert _share_of(net(), example) == 1.0  # other channels
    denoiser = _Denoiser(lambda x, y: x - y)
    goal = cs.Within().resolve(denoiser, OutputJudge(denoiser, [example]))
    assert (goal.scale, goal.most) == (pytest.approx(small, rel=0.2), pytest.approx(DEFAULT_ERROR_ADDED, rel=1e-3))
    assert "added to the input" in str(goal)


def test_the_limit_has_no_cliffs() -> None:
    """As less of the input is handed on, the error that is allowed grows without jumps, whichever images are drawn."""
    limits = []
    for share in torch.logspace(-1.7, 0.5, 60).tolist():
        model = _Denoiser(lambda x, y, share=share: x + 100 * share * y)  # type: ignore[misc]
        torch.manual_seed(0)
        model = _Denoiser(model.add)
        drawn = [_usual(model, images) for images in IMAGES.split(10)]
        errors = [goal.most * goal.scale for goal in drawn]
        assert max(errors) < 1.5 * min(errors)
        limits.append(drawn[0].most * drawn[0].scale)
    steps = [later / sooner for sooner, later in itertools.pairwise(limits)]
    assert min(steps) > 0.9
    assert max(steps) < 2
    assert limits[-1] > 100 * limits[0]


def test_lost_decisions_count_beside_the_error_by_default() -> None:
    goal = _usual(net(), IMAGES)
    assert goal.value(0.5 * goal.most, 0.0) == 0.5 * goal.most
    assert goal.spent(goal.value(0.0, 2 * DEFAULT_DECISIONS)) == pytest.approx(2)
    asked = _usual(net(), IMAGES, 0.2)
    assert asked.value(0.1, 0.9) == 0.1


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((40, 3, 12, 12), dtype=np.float32))
    (tmp_path / "mine.py").write_text("def score(model):\n    return 7.0\n")
    command = ["convert", f"{nets.__file__}:Plain", "--input", "1x3x12x12", "--rank", "1", "2", "--within", "1%"]
    images = ["--calibrate", str(tmp_path / "images.npy")]
    assert cli.main([*command, *images, "--metric", f"{tmp_path / 'mine.py'}:score", "--verbose"]) == 0
    printed = capsys.readouterr().out
    assert "Left as it was" in printed or "score of at least 6.93" in printed
    assert cli.main([*command, "--calibrate", "none"]) == 1
    assert "calibration" in capsys.readouterr().err
    assert cli.main([*command, *images, "--budget", "macs=0.5"]) == 1
    assert "--budget" in capsys.readouterr().err


def _never_close(monkeypatch: pytest.MonkeyPatch, *, stop_at: int | None = None) -> None:
    """Have every trial lose little, and the user interrupt one of them."""
    honest, count = search._try_share, 0

    def try_share(*given: Any) -> Trial:
        nonlocal count
        count += 1
        if count == stop_at:
            raise KeyboardInterrupt
        return dataclasses.replace(honest(*given), value=0.01, good_enough=True)

    monkeypatch.setattr(search, "_try_share", try_share)


def test_an_interrupt_takes_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    _never_close(monkeypatch, stop_at=2)
    result = converted(MadeUpTable(), cs.Within(0.5))
    assert result.changes
    assert any("interrupted after 1 plan" in note for note in result.report.notes)


def test_an_interrupt_before_there_is_a_network_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    _never_close(monkeypatch, stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        converted(MadeUpTable(), cs.Within(0.5))


def test_minutes_bound_the_search_after_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    late = 0.0

    class Slow(MadeUpTable):
        def time(self, *given: Any, **choices: Any) -> Any:
            nonlocal late
            late = 3600.0
            return super().time(*given, **choices)

    tables = [kind(beside=(1.0, 1.5, 1.0)) for kind in (MadeUpTable, Slow)]
    monkeypatch.setattr(search, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late))
    free, bound = (converted(table, cs.Within(0.5), minutes=60) for table in tables)
    assert [table.timed > 1 for table in tables] == [True, False]
    assert free.changes
    assert bound.changes
    assert [any("time for the search" in note for note in one.report.notes) for one in (free, bound)] == [False, True]


def test_minutes_bound_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    _never_close(monkeypatch)
    result = converted(MadeUpTable(), cs.Within(0.5), minutes=1e-6)
    assert len([trial for trial in result.trials if not math.isnan(trial.value)]) == 1
    assert result.changes
    assert any("after 1 plan" in note and "the next would" in note for note in result.report.notes)
    other = converted(MadeUpTable(beside=(1.0, 1.5, 1.0)), cs.Within(0.5), minutes=1e-6)  # which the clock contradicts
    assert sum("time for the search" in note for note in other.report.notes) == 1
    with pytest.raises(cs.errors.BudgetError, match="minutes"):
        converted(MadeUpTable(), cs.Within(0.5), minutes=0)
