"""Plans for int8 files: judged by what the file computes, held against the dense network in int8."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from torch import nn

import convsurgeon as cs
from convsurgeon import cli
from convsurgeon.calibration.collect import read
from convsurgeon.int8.module import Int8Module
from convsurgeon.search.trial import opened, rate, trial
from tests import nets
from tests.search import test_search
from tests.search.chain import net
from tests.search.test_search import EXAMPLE, FORMS, IMAGES


@dataclass(frozen=True)
class Table(test_search.Table):
    """Made-up milliseconds of int8 networks."""

    precision: str = "int8"


def _converted(**choices: object) -> cs.Result:
    how = {"forms": FORMS, "policy": cs.select.everything(), "calibration": IMAGES, "progress": False}
    return cs.convert(net(), EXAMPLE, **how | choices)  # type: ignore[arg-type]


def test_a_network_on_trial_is_its_int8_file() -> None:
    seen = cs.capture(net(), EXAMPLE)
    data = read(IMAGES, seen.example)
    exact = rate(opened(seen, FORMS, cs.select.everything(), True), data, 0, progress=False)
    rough = replace(exact, precision="int8")
    plan = exact.base
    left = plan.without(dict.fromkeys(plan.changes, "dense"))
    assert trial(exact, left)[1] == 0
    assert 0 < trial(rough, left)[1] < 0.01  # the network as it is loses something, too
    float_one, int8_one = trial(exact, plan), trial(rough, plan)
    assert isinstance(int8_one[0], Int8Module)
    assert not isinstance(float_one[0], Int8Module)
    assert 0 < abs(int8_one[1] - float_one[1]) < 0.1 * float_one[1]


def test_the_search_asks_the_metric_about_int8_and_export_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convsurgeon.search.fastest.EVALUATIONS", 2)
    asked: list[nn.Module] = []

    def nearness(model: nn.Module) -> float:
        asked.append(model)
        return test_search._nearness(model)

    result = _converted(latencies=Table(), metric=nearness, within=60.0, precision="int8")
    assert result.changes
    assert [type(model) is Int8Module for model in asked] == [False] + [True] * (len(asked) - 1)
    assert result.precision == "int8"
    assert " times as fast in int8 as the original in int8 measured (" in result.report.speed
    bundle = cs.export(result, tmp_path / "out", pairs=0, progress=False)
    assert {one.path.name for one in bundle.quantized} == {"original-int8.onnx", "model-int8.onnx"}
    assert bundle.recommended is None  # nothing was timed
    assert bundle.deployment.to_dict()["recommended"] is None


def test_a_budget_may_be_of_int8() -> None:
    assert cs.Budget.parse("latency=0.5,precision=int8") == cs.Budget(latency=0.5, precision="int8")
    result = _converted(latencies=Table(), budget=cs.Budget(latency=0.8, precision="int8"))
    assert result.precision == "int8"
    assert result.changes


@pytest.mark.parametrize(
    ("choices", "match"),
    [
        ({"budget": cs.Budget(macs=0.5), "precision": "int8"}, r"the budget says it itself; pass Budget\(\.\.\., prec"),
        ({"precision": "int8"}, r"precision='int8': nothing is planned here, so it changes nothing"),
        ({"precision": "int4"}, r"precision='int4'; pass one of fp32, int8"),
        ({"latencies": Table(), "within": 0.5}, r"the plan is for fp32, the table of latencies of int8; measure one"),
        (
            {"latencies": Table(precision="fp32"), "within": 0.5, "precision": "int8"},
            r"the plan is for int8, the table of latencies of fp32",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(choices: dict[str, object], match: str) -> None:
    with pytest.raises(cs.BudgetError, match=match):
        _converted(**choices)


def test_no_such_precision() -> None:
    with pytest.raises(cs.BudgetError, match=r"budget: precision='fp8'; pass one of fp32, int8"):
        cs.Budget.parse("macs=0.5,precision=fp8")


MODEL = [f"{nets.__file__}:Plain", "--input", "1x3x12x12"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", *MODEL, "--precision", "int8"], "--precision int8: is of a budget; add --budget latency=0.5"),
        (["convert", *MODEL, "--rank", "1", "--precision", "int8", "--calibrate", "none"], "nothing is planned here"),
        (["convert", *MODEL, "--out", "x", "--per-tensor"], "--per-tensor, --activations: are of --target npu"),
        (
            ["convert", *MODEL, "--out", "x", "--budget", "latency=0.5", "--precision", "int8", "--calibrate", "none"],
            "int8: needs images to find its ranges on",
        ),
    ],
)
def test_the_command_line_refuses_in_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_the_sweep_is_of_a_precision() -> None:
    how = {"shares": [0.6], "forms": FORMS, "policy": cs.select.everything(), "calibration": IMAGES, "progress": False}
    exact = cs.sweep(net(), EXAMPLE, **how)  # type: ignore[arg-type]
    rough = cs.sweep(net(), EXAMPLE, precision="int8", **how)  # type: ignore[arg-type]
    assert exact.points[0].error != rough.points[0].error
    with pytest.raises(cs.BudgetError, match="the plan is for int8, the table of latencies of fp32"):
        cs.sweep(net(), EXAMPLE, precision="int8", latencies=Table(precision="fp32"), **how)  # type: ignore[arg-type]
