"""Plans on trial: fitted roughly on a part of the images; what ships is fitted whole, in the precision that ships."""

from __future__ import annotations

import dataclasses
import gc
import math
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import convsurgeon as cs
from convsurgeon.calibration.collect import gather
from convsurgeon.distill.loss import OutputJudge
from convsurgeon.forms import cpfit
from convsurgeon.int8.module import Int8Module
from convsurgeon.search.scores import EFFORT
from convsurgeon.search.study import Study, open_study
from tests.search.chain import net
from tests.search.tables import MadeUpTable
from tests.search.test_within import FORMS, converted, nearness

IMAGES = torch.randn(80, 8, 12, 12, generator=torch.Generator().manual_seed(1))
pytestmark = pytest.mark.filterwarnings("ignore:.*images are few")


def _study(forms: list[cs.Form], precision: str = "fp32") -> Study:
    seen = cs.capture(net(), IMAGES[:1])
    data = gather(seen, IMAGES, seed=0, progress=False)
    runtime = cs.Runtime(precision=precision)  # type: ignore[arg-type]
    assert data is not None
    judge = OutputJudge(seen.model, data.held_back)
    return open_study(
        seen, data, runtime, judge=judge, forms=forms, policy=cs.select.everything(), allow_growth=True, progress=False
    ).score()


def test_a_trial_takes_half_of_the_steps_of_what_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    honest = cpfit.minimise

    def descended(*parts: object) -> object:
        steps.append(int(parts[3]))  # type: ignore[call-overload]
        return honest(*parts)  # type: ignore[arg-type]

    monkeypatch.setattr(cpfit, "minimise", descended)
    study = _study([cs.CP(rank=8)])
    steps.clear()
    study.known.starts.clear()
    roughly = study.try_plan(study.base).error
    rough = list(steps)
    steps.clear()
    study.known.starts.clear()
    whole = study.try_plan(study.base, final=True).error
    assert rough == [EFFORT * count for count in steps]
    assert rough
    assert whole < 1.05 * roughly < 1.5 * whole


def test_a_trial_leaves_no_copy_of_the_network_behind() -> None:
    """Torch's tracers and graphs are in circles, which Python may take minutes to find."""
    study = _study([cs.CP(rank=8)])
    gc.collect()
    gc.disable()
    try:
        left = weakref.ref(study.try_plan(study.base).model)
        assert left() is None
    finally:
        gc.enable()


def test_a_further_trial_does_not_run_the_original_again_and_finds_the_same() -> None:
    study, fresh = _study(FORMS), _study(FORMS)
    runs: list[int] = []
    conv = next(module for module in study.seen.model.modules() if isinstance(module, nn.Conv2d))
    conv.register_forward_hook(lambda module, args, _output: runs.append(len(args[0])) if module is conv else None)
    fewer = study.base.without(dict.fromkeys(list(study.base.changes)[:1], "dense"))
    study.try_plan(study.base)
    assert runs
    runs.clear()
    for one in (study, fresh):
        one.known.starts.clear()
    again = study.try_plan(fewer)
    assert not runs
    assert again.error == fresh.try_plan(fewer).error > 0


def test_a_network_on_trial_is_its_int8_file() -> None:
    exact, rough = _study(FORMS), _study(FORMS, "int8")
    left = exact.base.without(dict.fromkeys(exact.base.changes, "dense"))
    assert exact.try_plan(left).error == 0
    assert 0 < rough.try_plan(left).error < 0.01  # the network as it is loses something, too
    float_one, int8_one = exact.try_plan(exact.base), rough.try_plan(exact.base)
    assert isinstance(int8_one.shipped, Int8Module)
    assert not isinstance(float_one.shipped, Int8Module)
    assert 0 < abs(int8_one.error - float_one.error) < 0.1 * float_one.error


def test_what_a_trial_loses_beyond_its_scores_is_put_down_to_what_is_new_in_it() -> None:
    study = _study(FORMS)
    before = dict(study.scores)
    labels = {rank: form.label for rank, form in enumerate(FORMS, start=1)}

    def plan(*ranks: int) -> cs.Plan:
        chosen = dict(zip(study.options, ranks, strict=True))
        steps = tuple(study.options[name][rank - 1] for name, rank in chosen.items())
        return dataclasses.replace(study.base, steps=steps)

    first, second = plan(1, 1, 1), plan(2, 1, 1)
    study.learn(first, 3 * study.predicted_error(first))
    assert study.scores == pytest.approx({key: 3 * score for key, score in before.items()})
    was, wanted = dict(study.scores), 1.5 * study.predicted_error(second)
    study.learn(second, wanted)
    assert study.predicted_error(second) == pytest.approx(wanted)
    grown = {key: score / was[key] for key, score in study.scores.items()}
    assert grown["0", labels[2]] == grown["0", labels[3]] > grown["2", labels[1]] > 1
    assert grown["0", labels[1]] == grown["2", labels[2]] == 1  # another plan's, and not looked at
    study.learn(second, math.nan)
    assert study.predicted_error(second) == pytest.approx(wanted)


def test_a_metric_is_asked_about_int8_and_export_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsurgeon.search.search.MOST_TRIALS", 2)
    asked: list[nn.Module] = []

    def near(model: nn.Module) -> float:
        asked.append(model)
        return nearness(model)

    result = converted(MadeUpTable(precision="int8"), cs.Within("60%", metric=near))
    assert result.changes
    assert [type(model) is Int8Module for model in asked] == [False] + [True] * (len(asked) - 1)
    assert result.precision == "int8"
    assert "in int8 as the original in int8" in result.report.speed
    bundle = cs.export(result, tmp_path / "out", pairs=0, progress=False)
    assert {one.path.name for one in bundle.quantized} == {"original-int8.onnx", "model-int8.onnx"}


def test_a_table_of_another_precision_is_refused() -> None:
    with pytest.raises(cs.errors.LatencyError, match="int8"):
        cs.Runtime(table=MadeUpTable(precision="int8"))


def test_the_sweep_is_of_a_precision() -> None:
    how = {"shares": [0.6], "forms": FORMS, "policy": cs.select.everything(), "calibration": IMAGES, "progress": False}
    exact = cs.sweep(net(), IMAGES[:1], **how)  # type: ignore[arg-type]
    rough = cs.sweep(net(), IMAGES[:1], runtime=cs.Runtime(precision="int8"), **how)  # type: ignore[arg-type]
    assert exact.points[0].error != rough.points[0].error
