"""The sweep: one point per budget, cheaper to the left, drawn where asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import convsurgeon as cs
from convsurgeon import cli
from convsurgeon.search.sweep import _farthest
from tests import nets

MODEL = [f"{nets.__file__}:Plain", "--input", "1x3x12x12"]


def _swept(**extra: object) -> cs.Sweep:
    torch.manual_seed(0)
    images = torch.randn(40, 3, 12, 12)
    model = nets.Plain().eval()
    choices: dict[str, object] = {"shares": (0.01, 0.5, 0.9), **extra}
    return cs.sweep(model, images[:1], calibration=images, progress=False, **choices)  # type: ignore[arg-type]


def test_points_keep_their_budgets_and_name_what_cannot_be_reached() -> None:
    found = _swept(metric=lambda model: float(len(list(model.modules()))))
    assert found.unreachable == (0.01,)
    assert [point.share for point in found.points] == [0.5, 0.9]
    for point in found.points:
        assert point.plan.macs_after <= point.share * point.plan.cost.macs
    assert found.points[0].error >= found.points[1].error
    assert found.knee in found.points
    assert "cannot be reached: 0.01" in str(found)
    assert "metric" in found.table.headers
    assert "ms" not in found.table.headers


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_the_curve_is_drawn_whole_or_not_at_all(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"curve.{kind}"
    found = _swept()
    found.draw(path)
    assert path.stat().st_size > 1000
    with pytest.raises(cs.errors.WriteError, match="exists already"):
        found.draw(path)
    with pytest.raises(cs.errors.WriteError, match="change the ending"):
        found.draw(tmp_path / "curve.txt")
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@dataclass(frozen=True)
class Milliseconds:
    """Made up: a millisecond for every conv as it is, half of it in any form."""

    total_ms: float = 5.0

    def has(self, site: str, form: cs.Form | None) -> bool:
        return True

    def time(self, *_: object, **__: object) -> None:
        return None

    def ms(self, site: str, form: cs.Form | None) -> float:
        return 1.0 if form is None else 0.5


def test_milliseconds_stand_beside_the_macs_where_they_are_known(tmp_path: Path) -> None:
    found = _swept(runtime=cs.Runtime(table=Milliseconds()), shares=(0.9,))
    for point in found.points:
        assert point.ms == pytest.approx(5.0 - 0.5 * len(point.plan.changes))
    assert {"ms", "speed_up"} <= set(found.table.headers)
    pytest.importorskip("matplotlib")
    found.draw(tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").stat().st_size > 1000


def test_budgets_may_be_milliseconds() -> None:
    """Shares of the latency, by a table that is measured here or, as in this test, handed in."""
    found = _swept(runtime=cs.Runtime(table=Milliseconds()), shares=(0.7, 0.9), kind="latency")
    assert found.kind == "latency"
    assert [point.ms <= point.share * 5.0 for point in found.points] == [True] * len(found.points)
    assert "budgets of latency" in str(found)
    with pytest.raises(cs.errors.BudgetError, match="watts"):
        _swept(kind="watts")


def test_no_reachable_budget_is_an_error() -> None:
    torch.manual_seed(0)
    images = torch.randn(40, 3, 12, 12)
    with pytest.raises(cs.errors.BudgetError, match="cannot be reached"):
        cs.sweep(nets.Plain(), images[:1], calibration=images, shares=(0.01,), progress=False)


def test_the_knee_is_where_the_curve_bends() -> None:
    assert _farthest([1.0, 2.0, 3.0, 4.0], [10.0, 2.0, 1.5, 1.0]) == 1
    assert _farthest([1.0], [1.0]) == 0


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((40, 3, 12, 12), dtype=np.float32))
    command = ["sweep", *MODEL, "--calibrate", str(tmp_path / "images.npy"), "--shares", "0.5", "0.9"]
    assert cli.main([*command, "--json"]) == 0
    assert [row["budget"] for row in json.loads(capsys.readouterr().out)] == [0.5, 0.9]
    quick = ["--rank", "1", "--of", "latency", "--json", "--shares", "0.95"]
    assert cli.main([*command, *quick]) in (0, 1)  # this machine may find no form of so small a network faster
    printed = capsys.readouterr()
    assert "speed_up" in printed.out or "latency of 0.95 cannot be reached" in printed.err
    for wrong, message in (
        (["sweep", *MODEL, "--calibrate", "none"], "without images no plan can be judged"),
        ([*command, "--shares", "2"], "above 0 and up to 1"),
    ):
        assert cli.main(wrong) == 1
        assert message in capsys.readouterr().err
