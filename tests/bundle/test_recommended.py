"""Law 9's second half: what is recommended is never slower than dense int8, whatever the clock says."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from convsurgeon.bundle.recommend import allowed_error, recommend
from convsurgeon.report.bundle import DENSE_INT8
from convsurgeon.timing.comparison import ComparedFile, Comparison
from convsurgeon.timing.machine import read_machine

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
    errors=ERRORS,
    limit=st.floats(0, 1),
    accepted=st.sampled_from(["model.onnx", "model-int8.onnx"]),
    searched=st.booleans(),
    absent=st.sets(st.sampled_from(FILES[1:])),
)
def test_never_slower_than_the_quantised_dense_one(
    clocks: list[dict[str, float]],
    errors: dict[str, float],
    limit: float,
    accepted: str,
    searched: bool,
    absent: set[str],
) -> None:
    known = {name: value for name, value in errors.items() if name not in absent}
    timings = [
        timed({"original.onnx": 1.0} | {name: speed for name, speed in clock.items() if name in known}, threads)
        for threads, clock in enumerate(clocks, 1)
    ]
    allowed = allowed_error(known, limit=limit, accepted=accepted, searched=searched)
    found = recommend(timings, known, allowed)
    (own,) = (timing for timing in timings if timing.threads == found.threads)
    speeds = {row.name: row.speedup for row in own.rows}
    assert speeds[found.name] == found.speedup
    assert found.speedup >= speeds.get(DENSE_INT8, 0.0)  # the law
    assert found.speedup >= 1
    assert found.error <= allowed
    told = {row.name for row in own.rows if row.verdict == "faster" or row.name in ("original.onnx", DENSE_INT8)}
    assert found.speedup == max(speeds[name] for name in told if known.get(name, 0.0) <= allowed)
    assert found.over_dense_int8 is None if DENSE_INT8 not in known else found.over_dense_int8 >= 1  # type: ignore[operator]


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


@pytest.mark.parametrize(
    ("errors", "searched", "allowed"),
    [
        ({"model.onnx": 0.02}, False, 0.05),  # what was asked for, and the usual on top
        ({"model.onnx": 0.02}, True, 0.03),  # searched within 0.03: so much and no more
        ({"model.onnx": 0.04}, True, 0.04),
        ({"model.onnx": 0.9}, False, 0.03),  # destroyed, from the weights alone: nobody wants that
        ({"model.onnx": 0.02, "original-int8.onnx": 0.2}, True, 0.2),  # shipped without us, so no worse than that
        ({}, False, 0.03),
    ],
)
def test_what_may_be_lost(errors: dict[str, float], searched: bool, allowed: float) -> None:
    assert allowed_error(errors, limit=0.03, accepted="model.onnx", searched=searched) == pytest.approx(allowed)
