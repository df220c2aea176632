"""Law 9's second half: what is recommended is never slower than dense int8, whatever the clock says."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from torch import nn

import convsurgeon as cs
from convsurgeon.bundle.losses import RUINED, allowed_loss, ask_metric, chosen_file, losses
from convsurgeon.bundle.recommend import recommend
from convsurgeon.int8.compare import Agreement
from convsurgeon.int8.quantize import Quantized
from convsurgeon.report.bundle import DENSE_INT8
from convsurgeon.timing.comparison import ComparedFile, Comparison
from convsurgeon.timing.machine import read_machine
from tests.bundle.bundles import converted, export, images

FILES = (
    "original.onnx",
    "model.onnx",
    "original-int8.onnx",
    "model-int8.onnx",
)


def timed(speeds: dict[str, float], threads: int = 1, level: Any = "all", base_ms: float = 10.0) -> Comparison:
    """A clock that found these speed-ups."""
    rows = []
    for name, speed in speeds.items():
        ms = base_ms / speed
        figures = (ms, ms, ms, 1.0, ms)
        told = "faster" if speed > 1.02 else "slower" if speed < 0.98 else "no measurable difference"
        verdict = "baseline" if name == FILES[0] else told
        rows.append(ComparedFile(name, name, 1000, *figures, speed, (0.99 * speed, 1.01 * speed), verdict))
    return Comparison(tuple(rows), 1.01, 1.0, 50, threads, level, 1, read_machine(), ())


SPEEDS = st.fixed_dictionaries({name: st.floats(0.2, 20) | st.floats(0.97, 1.03) for name in FILES[1:]})
ERRORS = st.fixed_dictionaries({name: st.floats(0, 2) | st.just(math.inf) for name in FILES[1:]})


@settings(max_examples=150, deadline=None)
@given(
    clocks=st.lists(SPEEDS, min_size=1, max_size=4),
    lost=ERRORS,
    allowed=st.floats(0, 1),
    chosen=st.sampled_from(["", "model.onnx", "model-int8.onnx"]),
    absent=st.sets(st.sampled_from(FILES[1:])),
)
def test_never_slower_than_the_quantised_dense_one(
    clocks: list[dict[str, float]], lost: dict[str, float], allowed: float, chosen: str, absent: set[str]
) -> None:
    known = {name: value for name, value in lost.items() if name not in absent}
    timings = [
        timed({"original.onnx": 1.0} | {name: speed for name, speed in clock.items() if name in known}, threads)
        for threads, clock in enumerate(clocks, 1)
    ]
    found = recommend(timings, known, allowed, chosen)
    (own,) = (timing for timing in timings if timing.threads == found.threads)
    speeds = {row.name: row.speedup for row in own.rows}
    told = {row.name for row in own.rows if row.verdict == "faster"}
    assert speeds[found.name] == found.speedup
    near = {name for name in told if known[name] <= allowed or (name == chosen and known[name] < math.inf)}
    if DENSE_INT8 in near:
        assert found.speedup >= speeds[DENSE_INT8]  # the law
    assert found.name in near | {"original.onnx"}
    assert found.lost <= allowed or found.name == chosen
    assert found.speedup == max([1.0, *(speeds[name] for name in near)])
    assert found.over_dense_int8 == (found.speedup / speeds[DENSE_INT8] if DENSE_INT8 in known else None)


def test_the_setting_is_the_one_in_which_it_is_quickest() -> None:
    speeds = dict.fromkeys(FILES, 1.0) | {"model-int8.onnx": 3.0}
    slow, quick = timed(speeds, 1, "all", 10.0), timed(speeds | {"model-int8.onnx": 2.0}, 4, "extended", 4.0)
    found = recommend([slow, quick], dict.fromkeys(FILES[1:], 0.01), 0.03)
    assert (found.name, found.threads, found.level, found.spinning) == ("model-int8.onnx", 4, "extended", True)


def test_what_is_not_measurably_faster_is_no_reason_to_change() -> None:
    timing = timed(dict.fromkeys(FILES, 1.0) | {"model.onnx": 1.004})
    rows = tuple(dataclasses.replace(row, verdict="no measurable difference") for row in timing.rows[1:])
    found = recommend([dataclasses.replace(timing, rows=(timing.rows[0], *rows))], dict.fromkeys(FILES[1:], 0.0), 0.03)
    assert found.name == "original.onnx"


def result(searched: bool, within: cs.Within, after: float = 90.0) -> cs.Result:
    """A result of which only what it is judged by is looked at."""
    nothing: Any = None
    report = dataclasses.replace(converted().report, metrics=((within.name, within.before or 0.0, after),))
    found = cs.Result(nn.Identity(), nothing, report, nn.Identity(), nothing)
    return dataclasses.replace(found, within=within, searched=searched)


@pytest.mark.parametrize(
    ("lost", "searched", "allowed"),
    [
        ({"model.onnx": 0.02}, False, 0.05),  # what was asked for, and the usual on top
        ({"model.onnx": 0.02}, True, 0.03),  # searched within 0.03: so much and no more
        ({"model.onnx": 0.04}, True, 0.03),
        ({"model.onnx": 0.9}, False, 0.03),  # destroyed, from the weights alone: nobody wants that
        ({"model.onnx": 0.02, "original-int8.onnx": 0.2}, True, 0.03),  # one limit for everything that ships
        ({}, False, 0.03),
    ],
)
def test_what_may_be_lost(lost: dict[str, float], searched: bool, allowed: float) -> None:
    within = cs.Within(0.03).resolve(nn.Identity())
    found = result(searched, within)
    assert allowed_loss(lost, found, within) == pytest.approx(allowed)
    own = lost.get("model.onnx", math.inf)
    assert chosen_file(lost, found, within) == ("model.onnx" if searched and own <= RUINED else "")


def test_a_metric_decides_of_int8_files_too() -> None:
    within = cs.Within("1%", metric=lambda _: 90.0).resolve(nn.Identity())
    found = result(True, within)
    agreement = [Agreement(name, 50.0, None, 8, 1e-6) for name in FILES[1:]]  # by the error all would do
    values = {"model.onnx": 89.5, "original-int8.onnx": 80.0, "model-int8.onnx": math.nan}
    lost = losses(within, agreement, values)
    assert lost == {"model.onnx": 0.5, "original-int8.onnx": 10.0, "model-int8.onnx": math.inf}
    allowed = allowed_loss(lost, found, within)
    assert allowed == pytest.approx(0.9)
    speeds = {"original.onnx": 1.0, "model.onnx": 1.5, "original-int8.onnx": 2.0, "model-int8.onnx": 3.0}
    best = recommend([timed(speeds)], lost, allowed, chosen_file(lost, found, within))
    assert (best.name, best.lost) == ("model.onnx", 0.5)


def test_a_metric_is_asked_of_the_file_itself(tmp_path: Path) -> None:
    asked: list[nn.Module] = []

    def size(model: nn.Module) -> float:
        asked.append(model)
        return float(model(images(5)).detach().abs().sum()) + 0 * sum(value.numel() for value in model.parameters())

    small = converted()
    within = cs.Within(metric=size).resolve(small.original)
    judged = small.judged_by(within)
    assert judged.report.metrics == (("size", within.before, size(small.model)),)
    bundle = export(judged, tmp_path / "out", int8=True, calibration=images())
    assert set(bundle.values) == {"original.onnx", "model.onnx", "original-int8.onnx", "model-int8.onnx"}
    assert len(asked) - 1 == len({id(model) for model in asked}) == 4  # one of them here, above
    for name, value in bundle.values.items():
        assert value == pytest.approx(size(small.original if "original" in name else small.model), rel=0.05)
    assert len(set(bundle.values.values())) == 4
    assert bundle.files.headers[2] == "metric"


def test_a_metric_that_fails_on_a_file_is_said() -> None:
    within = cs.Within(1.0, metric=lambda model: model.no_such_thing, before=90.0)  # type: ignore[arg-type,return-value]
    file = Quantized(Path("nowhere/model-int8.onnx"), 1, "int8", 50.0, 1.0, ())
    values, (note,) = ask_metric(result(True, within), [file])
    assert math.isnan(values["model-int8.onnx"])
    assert "model-int8.onnx" in note
    assert losses(within, [Agreement("model-int8.onnx", 50.0, None, 8, 0.0)], values) == {"model-int8.onnx": math.inf}
