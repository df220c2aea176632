"""The sentence and its cautions say what the figures say."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
import torch
from torch import nn

import convsurgeon as cs
from convsurgeon.report.bundle import Recommended
from convsurgeon.report.cautions import cautions, remarks
from convsurgeon.report.sentence import lines, sentence
from convsurgeon.search.trial import Trial
from tests import nets
from tests.report.bundles import make_bundle, timing

X = torch.linspace(-1, 1, 2 * 3 * 12 * 12).reshape(2, 3, 12, 12)


@pytest.fixture(scope="module")
def report() -> cs.Report:
    torch.manual_seed(0)
    made = cs.convert(
        nets.Shared().eval(), X, policy=cs.select.everything(), forms=[cs.DepthwiseSeparable(rank=1)], calibration=False
    ).report
    return dataclasses.replace(made, warning="")  # that it looks untrained


def test_an_untrained_network_is_told_first() -> None:
    torch.manual_seed(0)
    made = cs.convert(nets.Shared().eval(), X, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False).report
    assert sentence(made).startswith("The network looks untrained")
    trained = nets.Shared()
    for norm in trained.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean += 0.1
    made = cs.convert(trained.eval(), X, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False).report
    assert not made.warning


def _recommended(**values: Any) -> Recommended:
    usual: dict[str, Any] = {"name": "model.onnx", "speedup": 2.5, "over_dense_int8": 2.02, "lost": 0.0123}
    usual |= {"allowed": 0.03, "threads": 2, "level": "all", "interval": (2.4, 2.6), "spinning": True}
    return Recommended(**{**usual, **values})


def test_without_files(report: cs.Report) -> None:
    text = sentence(report)
    assert re.match(r"outputs differ by [\d.]+% \(SQNR [\d.]+ dB\) on 2 rows of the example\. 3 of 3 convs", text)
    assert " times fewer MACs, " in text
    assert text.endswith(" times fewer parameters.")
    faster = dataclasses.replace(report, speed="1.98 times as fast: 1 ms instead of 2, measured.")
    assert "example, 1.98 times as fast: " in sentence(faster)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "50.0% of decisions stay (21.5 to 78.5) on 8 held-out images, 2.50 times as fast (2.40 to 2.60) with 2"),
        ({"threads": 1}, "2.50 times as fast (2.40 to 2.60) with 1 thread: ship model.onnx. 3 of 3 convs rewritten: "),
        ({"level": "extended"}, "with 2 threads, optimisation level extended: ship model.onnx. "),
        ({"name": "model-int8.onnx"}, "the same outputs on 8 held-out images, 2.50 times"),
        ({"name": "original-int8.onnx"}, "ship original-int8.onnx, the original quantised and nothing else. "),
        (
            {"name": "original.onnx"},
            "Ship original.onnx: no other file is both faster and near enough. model.onnx: 50.0%",
        ),
        (
            {"name": "original.onnx"},
            "images, 0.50 times as fast, that is slower, (0.40 to 0.60) with 2 threads. 3 of 3",
        ),
    ],
)
def test_one_file_one_speed_up_in_one_setting(report: cs.Report, values: dict[str, Any], words: str) -> None:
    best = _recommended(**values)
    sizes = {"size_bytes": 1_000_000, "recommended": best}
    text = sentence(report, make_bundle(timing(2, model=0.5, original_int8=2.0), dense_int8=True, **sizes))
    assert words in text
    assert text.count("times as fast") == 1
    assert "instead of 4.00 MB" in text
    for word in ("allowed", "level all", "quantised original"):
        assert word not in text


def test_it_begins_with_the_metric(report: cs.Report) -> None:
    measured = report.with_metric("iou", 92.66, 92.41)
    best = make_bundle(timing(2, model=2.5), recommended=_recommended())
    assert sentence(measured).startswith("iou 92.66 -> 92.41. ")
    assert sentence(measured, best).startswith("iou 92.66 -> 92.41, 2.50 times as fast (2.40 to 2.60) with 2 threads: ")
    rounded = dataclasses.replace(best, values={"original.onnx": 92.66, "model.onnx": 92.41, "model-int8.onnx": 92.3})
    other = dataclasses.replace(rounded, recommended=_recommended(name="model-int8.onnx"))
    assert sentence(measured, other).startswith("iou 92.66 -> 92.3, 2.50 times")  # that of the file to ship
    lost = dataclasses.replace(rounded, recommended=_recommended(name="original.onnx"))
    assert sentence(measured, lost).startswith("Ship original.onnx: no other file is both faster and near enough. ")
    assert "model.onnx: iou 92.66 -> 92.41, 2.50 times as fast" in sentence(measured, lost)


def test_outputs_that_are_not_decisions(report: cs.Report) -> None:
    plain = make_bundle(top1=None)
    assert "outputs differ by 10% (SQNR 20.0 dB) on 8 held-out" in sentence(report, plain)
    maps = dataclasses.replace(plain.agreement[0], overlap=0.973)
    segments = dataclasses.replace(report, fidelity=dataclasses.replace(report.fidelity, overlap=0.9))
    told = sentence(segments, dataclasses.replace(plain, agreement=(maps,)))
    assert "97.3% of every class stay (intersection over union) on 8 held-out" in told
    added = dataclasses.replace(report, fidelity=dataclasses.replace(report.fidelity, agreement=None, added_db=21.5))
    assert "what it adds to the image differs by 8.4% (SQNR 21.5 dB)" in sentence(added)
    nothing = dataclasses.replace(report, steps=report.steps[:0])
    assert sentence(nothing) == "None of 0 convs was rewritten: the network is as it was."


def test_where_little_is_gained_it_says_what_could_be_had(report: cs.Report) -> None:
    could = dataclasses.replace(report, outlook="About 1.6 times as fast at iou 91.9: Within(0.8, metric=iou).")
    slow, fast = (make_bundle(timing(2, model=speed), recommended=_recommended(speedup=speed)) for speed in (1.2, 2.5))
    assert sentence(could, slow).endswith(could.outlook)
    assert could.outlook not in sentence(could, fast)
    assert could.outlook in "\n".join(lines(could, fast, where="there"))


def test_ten_lines(report: cs.Report) -> None:
    full = dataclasses.replace(report, warning="The images may be wrong.", outlook="More could be had.")
    full = full.with_metric("iou", 92.66, 92.41)
    notes = [f"note {number}" for number in range(9)]
    for bundle in (None, make_bundle(), make_bundle(timing(2, model=2.5), recommended=_recommended())):
        for shown in (report, full):
            found = lines(shown, bundle, where="there", notes=notes)
            assert len(found) == 10
            assert found[-1] == "there"
            assert not any("\n" in line for line in found)
    table = "\n".join(found)
    assert re.search(r"iou +92.66 +92.41\nms +2 +0.8\nMB +4.00 +1.00\nMACs ", table)
    assert found[0] == "The images may be wrong."
    assert "More could be had." in table


def test_a_warning_comes_before_everything(report: cs.Report) -> None:
    warned = dataclasses.replace(report, warning="The images are black.")
    for text in (sentence(warned), str(warned), warned.to_markdown().split("\n\n", 1)[1]):
        assert text.startswith("The images are black.")
    assert warned.to_dict()["warning"] == "The images are black."


def test_cautions_name_what_the_sentence_hides(report: cs.Report) -> None:
    slow = make_bundle(timing(model=1.5, original_int8=2.0, model_int8=1.8), timing(2, "extended", model=0.9))
    found = " ".join([*cautions(report, slow), *remarks(report, slow)])
    assert "Not faster than the original with 2 threads at optimisation level extended (0.90)." in found
    assert "in int8, with its convs as they were, is 2.00 times as fast: here quantising alone does as well" in found
    assert "fewer MACs are" in found
    fast = make_bundle(timing(model=30.0, original_int8=2.0, model_int8=40.0))
    assert "rewriting them gives 40.00" in " ".join(remarks(report, fast))
    assert "fewer MACs are" not in " ".join(remarks(report, fast))
    best = _recommended(name="model.onnx", speedup=1.4, threads=2)  # in another setting than the first
    both = make_bundle(timing(model=1.5), timing(2, model=1.4), recommended=best)
    (said,) = (text for text in remarks(report, both) if "fewer MACs are" in text)
    assert "are 1.40 times the speed" in said
    far = dataclasses.replace(report, fidelity=dataclasses.replace(report.fidelity, sqnr_db=2.0))
    assert "far from the original's (SQNR 2.0 dB): without calibration" in " ".join(cautions(far))
    near = dataclasses.replace(report, fidelity=dataclasses.replace(report.fidelity, sqnr_db=math.inf))
    assert cautions(near, make_bundle(timing(model=30.0))) == []


def test_blocked_providers_are_named(report: cs.Report) -> None:
    blocking = ["a (Pad)", "b (Pad)", "c (Pad)"]
    assert "NNAPI stops at a (Pad) and 2 more" in " ".join(remarks(report, make_bundle(blocking=blocking)))
    found = " ".join(remarks(report, make_bundle(blocking=blocking, dynamic=["x"])))
    assert "need static shapes, and x has open dimensions" in found
    assert "NNAPI" not in found


def test_small_files_are_told_in_kilobytes(report: cs.Report) -> None:
    assert "12.3 kB instead of 4.00 MB" in sentence(report, make_bundle(size_bytes=12_345))


@pytest.mark.parametrize(("lost", "close"), [(0.01, True), (0.3, False)])
def test_why_decisions_change_of_which_few_were_right(report: cs.Report, lost: float, close: bool) -> None:
    """Half of the decisions change; most are called close where few of the right ones are lost by that."""
    plan = cs.plan(nets.Shared(), X, forms=[cs.DepthwiseSeparable(rank=1)])
    told = sentence(dataclasses.replace(report, trials=(Trial(plan, lost=lost, taken=True),)), make_bundle())
    assert f"about {lost:.1%} of the right ones are lost" in told
    assert ("mostly close" in told) == close
