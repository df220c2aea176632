"""The sentence and its cautions say what the figures say."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

import convsurgeon as cs
from convsurgeon.report.bundle import Recommended
from convsurgeon.report.sentence import cautions, sentence
from tests import nets
from tests.report.bundles import make_bundle, timing

X = torch.linspace(-1, 1, 2 * 3 * 12 * 12).reshape(2, 3, 12, 12)


@pytest.fixture(scope="module")
def report() -> cs.Report:
    torch.manual_seed(0)
    return cs.convert(
        nets.Shared().eval(), X, policy=cs.select.everything(), forms=[cs.DepthwiseSeparable(rank=1)], calibration=False
    ).report


def test_without_files(report: cs.Report) -> None:
    text = sentence(report)
    assert text.startswith("3 of 3 convs rewritten: ")
    assert " times fewer MACs, " in text
    assert " times fewer parameters; " in text
    assert "of the example's 2 rows" in text


@pytest.mark.parametrize(
    ("speedup", "words"),
    [
        (2.5, "2.50 times as fast (95 %: 2.40 to 2.60) with 2 threads on this machine"),
        (0.5, "0.50 times as fast, that is slower, (95 %: 0.40 to 0.60) with 2 threads"),
        (1.0, "no measurable difference in speed with 2 threads on this machine"),
    ],
)
def test_speed_in_words(report: cs.Report, speedup: float, words: str) -> None:
    text = sentence(report, make_bundle(timing(2, model=speedup)))
    assert words in text
    assert "1.00 MB instead of 4.00 MB" in text
    assert "same top-1 as the original on 50.0 % of 8 held-out images" in text


def test_nearness_and_metrics(report: cs.Report) -> None:
    assert "outputs at 20.0 dB SQNR from the original's on 8" in sentence(report, make_bundle(top1=None))
    measured = report.with_metric("accuracy", 91.63, 90.5)
    assert sentence(measured).endswith("; accuracy 91.63 before, 90.5 after.")
    nothing = dataclasses.replace(report, steps=report.steps[:0])
    assert sentence(nothing) == "None of 0 convs was rewritten: the network is as it was."


def test_a_warning_comes_before_everything(report: cs.Report) -> None:
    warned = dataclasses.replace(report, warning="The images are black.")
    for text in (sentence(warned), str(warned), warned.to_markdown().split("\n\n", 1)[1]):
        assert text.startswith("The images are black.")
    assert warned.to_dict()["warning"] == "The images are black."


def test_cautions_name_what_the_sentence_hides(report: cs.Report) -> None:
    slow = make_bundle(timing(model=1.5, original_int8=2.0, model_int8=1.8), timing(2, "extended", model=0.9))
    found = " ".join(cautions(report, slow))
    assert "Not faster than the original with 2 threads at level extended (0.90)." in found
    assert "in int8, without any surgery, is 2.00 times as fast: here quantising alone does as well" in found
    assert "fewer MACs, but" in found
    fast = make_bundle(timing(model=30.0, original_int8=2.0, model_int8=40.0))
    assert "the surgery gives 40.00" in " ".join(cautions(report, fast))
    assert "fewer MACs, but" not in " ".join(cautions(report, fast))
    far = dataclasses.replace(report, fidelity=dataclasses.replace(report.fidelity, sqnr_db=2.0))
    assert "far from the original's (SQNR 2.0 dB): without calibration" in " ".join(cautions(far))
    near = dataclasses.replace(report, fidelity=dataclasses.replace(report.fidelity, sqnr_db=math.inf))
    assert cautions(near, make_bundle(timing(model=30.0))) == []


def test_blocked_providers_are_named(report: cs.Report) -> None:
    blocking = ["a (Pad)", "b (Pad)", "c (Pad)"]
    assert "NNAPI stops at a (Pad) and 2 more" in " ".join(cautions(report, make_bundle(blocking=blocking)))
    found = " ".join(cautions(report, make_bundle(blocking=blocking, dynamic=["x"])))
    assert "need static shapes, and x has open dimensions" in found
    assert "NNAPI" not in found


def test_small_files_are_told_in_kilobytes(report: cs.Report) -> None:
    assert "12.3 kB instead of 4.00 MB" in sentence(report, make_bundle(size_bytes=12_345))


def _recommended(**values: Any) -> Recommended:
    usual: dict[str, Any] = {"name": "model-int8.onnx", "speedup": 6.92, "over_dense_int8": 2.02, "lost": 0.0123}
    usual |= {"allowed": 0.03, "threads": 2, "level": "all", "interval": (6.0, 7.0), "spinning": True}
    return Recommended(**{**usual, **values})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {},
            "Ship model-int8.onnx: 6.92 times as fast as original.onnx with 2 threads at level all, 2.02 times as fast "
            "as the quantised original; its error is 0.012, allowed 0.03. 3 of 3 convs rewritten",
        ),
        (
            {"name": "original-int8.onnx", "over_dense_int8": 1.0, "threads": 1},
            "Ship original-int8.onnx, the original without any surgery: 6.92 times as fast as original.onnx with 1 "
            "thread at level all; its error",
        ),
        (
            {"over_dense_int8": None},
            "Ship model-int8.onnx: 6.92 times as fast as original.onnx with 2 threads at level all; its",
        ),
        (
            {"name": "original.onnx"},
            "Ship original.onnx, the network as it was: no other file is faster with 2 threads",
        ),
    ],
)
def test_the_first_sentence_is_the_file_to_ship(report: cs.Report, values: dict[str, Any], words: str) -> None:
    assert sentence(report, make_bundle(recommended=_recommended(**values))).startswith(words)
