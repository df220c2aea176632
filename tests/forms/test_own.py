"""A form of the user's own goes the whole way, and the package is not touched for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.onnxnet.measuring import folder
from convsurgeon.runtime.table import LatencyTable
from tests.forms.own import Reduced

EXAMPLE = torch.zeros(1, 3, 16, 16)
FORMS = [Reduced(rank=rank) for rank in (4, 8, 16)]


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(32, 10, 1),
    ).eval()  # fmt: skip


def _images() -> Tensor:
    return torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_it_was_written_in_under_eighty_lines() -> None:
    assert len((Path(__file__).parent / "own.py").read_text().splitlines()) < 80


def test_without_factors_from_the_weights_the_fit_to_white_noise_gives_them() -> None:
    conv = nn.Conv2d(8, 12, 3)
    geometry = cs.Geometry.of(conv)
    for rank in (3, 8):
        form = Reduced(rank=rank)
        closed, fitted = (method(form, geometry, conv.weight) for method in (Reduced.factored, cs.Form.factored))
        wanted, found = (form.scheme(geometry).kernel(factors[0]) for factors in (closed, fitted))
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_it_is_calibrated_planned_saved_rebuilt_and_exported(tmp_path: Path) -> None:
    budget = cs.Budget(macs=0.4)
    result = cs.convert(_net(), EXAMPLE, forms=FORMS, goal=budget, calibration=_images(), progress=False)
    assert "3" in result.changes
    assert {change.form.name for change in result.changes.values()} == {"reduced"}
    assert result.report.after.macs == result.plan.macs_after <= 0.4 * result.report.before.macs
    calibrated = result.report.reconstruction
    assert all(site.after < site.before for site in calibrated.sites)
    assert calibrated.error_after < calibrated.error_before

    result.plan.save(tmp_path / "plan.json")
    with pytest.raises(cs.errors.PlanError, match=r"unknown form 'reduced'.*pass the class of another as forms="):
        cs.Plan.load(tmp_path / "plan.json")
    plan = cs.Plan.load(tmp_path / "plan.json", forms=[Reduced])
    assert plan == result.plan

    bundle = cs.export(result, tmp_path / "out", pairs=0, progress=False)
    fresh = cs.rebuild(_net(), plan)
    fresh.load_state_dict(load_file(bundle.folder / "weights.safetensors"))
    x = _images()
    with torch.no_grad():
        assert torch.equal(fresh(x), result.model(x))
    assert cs.onnx.check_parity(fresh, EXAMPLE, bundle.folder / "model.onnx").passed


def test_it_is_timed_and_its_times_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "busy_share", lambda _threads: 0.0)  # else what a busy machine has taken is timed again

    def measured(forms: list[cs.Form]) -> LatencyTable:
        seen = cs.capture(_net(), EXAMPLE)
        table = cs.Runtime(cache=tmp_path).measure(seen, forms, passes=1, prune=False, progress=False)
        assert isinstance(table, LatencyTable)
        return table

    table = measured([FORMS[0]])
    assert table.ms("3", FORMS[0]) > 0
    assert measured([FORMS[0]]).rows == table.rows
    other = cs.DepthwiseSeparable(rank=1)
    both = measured([other])  # what the cache holds of forms that this call does not know is left alone
    assert both.has("3", other)
    assert not both.has("3", FORMS[0])
    assert measured([FORMS[0], other]).ms("3", FORMS[0]) == pytest.approx(table.ms("3", FORMS[0]), rel=0.5)
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json", forms=[Reduced]).rows == table.rows
    with pytest.raises(cs.errors.LatencyError, match="unknown form 'reduced'"):
        LatencyTable.load(tmp_path / "table.json")
