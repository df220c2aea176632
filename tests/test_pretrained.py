"""Real pretrained networks keep their reference metrics at full rank, from Python and from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import convsurgeon as cs
from convsurgeon.cli.main import main
from tests import networks
from tests.growing import convert_growing

pytestmark = [networks.needs_data, pytest.mark.usefixtures("all_epochs")]

CASES: dict[str, tuple[tuple[int, ...], Callable[[nn.Module], float], str]] = {
    "resnet20": ((1, 3, 32, 32), networks.cifar_top1, "cifar_resnet"),
    "resnet56": ((1, 3, 32, 32), networks.cifar_top1, "cifar_resnet"),
    "dncnn": ((1, 1, 64, 64), networks.set12_psnr, "dncnn"),
    "vdsr": ((1, 1, 64, 64), networks.vdsr_psnr, "vdsr"),
}
FILE = networks.__file__
FAST = ["resnet20", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet56", "dncnn", "vdsr"))]


@pytest.mark.parametrize("form", [cs.DepthwiseSeparable, pytest.param(cs.Blueprint, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FAST)
def test_rank_nine_keeps_the_metric_to_the_second_decimal(name: str, form: type[cs.DepthwiseSeparable]) -> None:
    shape, metric, _ = CASES[name]
    model = networks.pretrained(name)
    result = convert_growing(model, torch.randn(shape), forms=[form(rank=9)], calibration=False)
    assert len(result.changes) >= 15
    assert metric(result.model) == pytest.approx(metric(model), abs=0.005)


@pytest.mark.parametrize("name", FAST)
def test_from_the_command_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape, metric, factory = CASES[name]
    depth = name.removeprefix("resnet") if "resnet" in name else ""
    file = tmp_path / "net.py"
    file.write_text(f"from tests import networks\ndef make(): return networks.{factory}({depth})\n")
    arguments = ["convert", f"{file}:make", "--weights", str(networks.weights_path(name))]
    arguments += ["--input", "x".join(map(str, shape)), "--rank", "4", "--calibrate", "none"]
    arguments += ["--metric", f"{FILE}:{metric.__name__}"]
    assert main([*arguments, "--json"]) == 0
    summary = {row[""]: row for row in json.loads(capsys.readouterr().out)["report"]["summary"]}
    assert summary["macs"]["ratio"] < 0.63
    reference = {"resnet20": 91.63, "resnet56": 92.60, "dncnn": 30.42, "vdsr": 37.36}[name]
    assert summary[metric.__name__]["before"] == pytest.approx(reference, abs=0.006)
    assert summary[metric.__name__]["after"] < reference


def test_a_segnet_with_every_conv_converted_loses_88_to_89_percent_of_its_parameters() -> None:
    with torch.device("meta"):
        model = networks.segnet(classes=12, width=64)
    result = cs.convert(
        model,
        torch.zeros(1, 3, 64, 64),
        forms=[cs.DepthwiseSeparable(rank=1)],
        policy=cs.select.everything(),
        calibration=False,
    )
    assert len(result.changes) == 26
    assert 0.88 <= 1 - result.report.after.params / result.report.before.params <= 0.89
