"""Files that an earlier version wrote still load: a plan, a bundle, a run, a table, a device's file, a cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import convsurgeon as cs
from convsurgeon.onnx import standalone as measuring
from convsurgeon.runtime.cache import cache_file, fingerprint
from tests.kept.network import Kept, kept

HERE = Path(__file__).parent / "kept"
GOLDEN = load_file(HERE / "golden.safetensors")
FORMS = [cs.DepthwiseSeparable(rank=1), cs.BlueprintSubspace(rank=1), cs.SpatialSeparable(rank=8)]
"""That the table and the device's file hold."""


@pytest.fixture
def original() -> Kept:
    model = kept()
    model.load_state_dict(load_file(HERE / "original.safetensors"))
    return model


@pytest.fixture
def result(original: Kept) -> cs.Result:
    """What `recover --from` makes of a bundle."""
    found = cs.carry_out(original, cs.Plan.load(HERE / "bundle" / "plan.json"), GOLDEN["x"], calibration=False)
    found.model.load_state_dict(load_file(HERE / "bundle" / "weights.safetensors"))
    return found


def _close(model: torch.nn.Module, wanted: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(GOLDEN["x"]), wanted, rtol=1e-4, atol=1e-5)


def test_a_plan_rebuilds_the_network_it_was_made_for(original: Kept) -> None:
    plan = cs.Plan.load(HERE / "plan.json")
    assert [change.form.label for change in plan.changes.values()] == [
        "separable rank 2",
        "tucker rank 8 from 4",
        "blueprint rank 1",
        "subspace rank 1 width 0.5",
        "spatial rank 8",
    ]
    fresh = cs.rebuild(original, plan)
    fresh.load_state_dict(load_file(HERE / "bundle" / "weights.safetensors"))
    _close(fresh, GOLDEN["converted"])


def test_a_bundle_computes_what_its_network_did(result: cs.Result) -> None:
    _close(result.original, GOLDEN["original"])
    _close(result.model, GOLDEN["converted"])
    session = ort.InferenceSession(str(HERE / "bundle" / "model.onnx"), providers=["CPUExecutionProvider"])
    with (
        np.load(HERE / "bundle" / "golden_inputs.npz") as inputs,
        np.load(HERE / "bundle" / "golden_outputs.npz") as outputs,
    ):
        (wanted,) = (outputs[name] for name in outputs.files)
        (found,) = session.run(None, {name: inputs[name] for name in inputs.files})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_run_is_gone_on_with(result: cs.Result, tmp_path: Path) -> None:
    run = shutil.copytree(HERE / "run", tmp_path / "run")
    images = torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    settings = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "progress": False}
    better = cs.recover(result, images, run=run, resume=True, **settings)
    _close(better.model, GOLDEN["recovered"])


@pytest.mark.parametrize("name", ["table.json", "device.json"])
def test_tables_and_device_files_say_what_they_said(name: str) -> None:
    table = cs.LatencyTable.load(HERE / name)
    other = cs.LatencyTable.load(HERE / "table.json")
    assert table.rows == other.rows
    assert table.total_ms == pytest.approx(other.total_ms)
    assert table.ms("layers.0", FORMS[0]) < table.ms("layers.0", None)


def test_a_cache_is_read_and_not_measured_again(
    original: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = cs.LatencyTable.load(HERE / "device.json")
    monkeypatch.setattr(measuring, "machine", lambda: dict(then.machine))
    monkeypatch.setattr(measuring, "measure", lambda *_, **__: pytest.fail("measured again"))
    seen = cs.capture(original, GOLDEN["x"])
    shutil.copy(HERE / "device.json", cache_file(tmp_path, fingerprint(seen), 1))
    table = cs.LatencyTable.measure(original, GOLDEN["x"], FORMS, cache=tmp_path, progress=False)
    assert table.rows == then.rows
