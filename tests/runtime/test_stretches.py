"""Networks cut into stretches, for runtimes that fuse all nodes: every piece runs, and the pieces add up."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.onnxnet import measuring
from convsurgeon.onnxnet.measuring import engine, folder
from convsurgeon.runtime import device_folder
from convsurgeon.runtime.device_folder import write_device_folder
from convsurgeon.runtime.table import LatencyTable

FORMS: list[cs.Form] = [cs.CP(rank=8), cs.DepthwiseSeparable(rank=2)]
EXAMPLE = torch.zeros(1, 3, 16, 16)
FUSING = "MadeUpExecutionProvider"


class Net(nn.Module):
    """Three convs of one shape with a shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.one, self.two, self.three = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.two(torch.relu(self.one(x)))) + x
        return self.head(torch.relu(self.three(x)).mean((2, 3)))


@pytest.fixture
def fusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's provider stands in for one that tells nothing of its nodes."""
    for module in (engine, folder, device_folder):
        monkeypatch.setattr(module, "fuses", lambda _: True)


@pytest.mark.usefixtures("fusing")
def test_sites_have_their_milliseconds_where_no_node_has(tmp_path: Path) -> None:
    seen = cs.capture(Net().eval(), EXAMPLE)
    for precision in ("fp32", "int8"):
        runtime = cs.Runtime(precision=precision, cache=tmp_path / precision)  # type: ignore[arg-type]
        table = runtime.measure(seen, FORMS, cs.select.everything(), passes=1, prune=False, progress=False)
        assert isinstance(table, LatencyTable)
        sites = [site.name for site in seen.sites]
        assert 0 < table.rest_ms < table.total_ms
        assert all(table.ms(site, None) > 0 for site in sites)
        assert all(table.ms(site, FORMS[0]) > 0 for site in ("one", "two", "three"))
        samples = table.measurements.samples
        assert all(sum(node.ms for node in one.nodes) == pytest.approx(one.total_ms) for one in samples)


@pytest.mark.usefixtures("fusing")
def test_sites_of_one_shape_are_written_and_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "device"
    write_device_folder(Net().eval(), EXAMPLE, FORMS, out)
    manifest = json.loads((out / "manifest.json").read_text())
    own = manifest["networks"]["dense"]["stretches"]
    assert next(iter(own)) == "node-0"
    assert list(own)[-1] == "rest"
    assert len(own) == 5
    assert len(set(own.values())) == 4  # one and three, with a ReLU behind them; two has a sum, too
    write_device_folder(Net().eval(), EXAMPLE, FORMS, out, overwrite=True)
    opened: list[object] = []
    honest = engine.Engine.open

    def noted(self: engine.Engine, model: Path | bytes) -> object:
        opened.append(model)
        return honest(self, model)

    monkeypatch.setattr(engine.Engine, "open", noted)
    alone = folder.Stretches(out, manifest, engine.Engine())
    nodes = [alone.share(network, 2.0) for network in manifest["networks"].values()]
    assert all(sum(ms for *_, ms in one) == pytest.approx(2.0) for one in nodes)
    assert len(opened) == len(set(opened)) == len(manifest["stretches"]) + 1  # and what every run takes


def test_a_folder_without_stretches_is_refused_by_a_runtime_that_needs_them(tmp_path: Path) -> None:
    out = tmp_path / "device"
    write_device_folder(Net().eval(), EXAMPLE, FORMS, out)
    with pytest.raises(engine.MeasureError, match=f"--provider {FUSING}"):
        folder.measure_folder(out, out / "device.json", engine.Engine(1, FUSING), 1, print)


def test_half_of_a_provider_s_name_is_refused_before_a_folder_is_written(tmp_path: Path) -> None:
    with pytest.raises(cs.errors.LatencyError, match="'cuda'"):
        write_device_folder(Net().eval(), EXAMPLE, FORMS, tmp_path / "device", provider="cuda")
    assert not list(tmp_path.iterdir())


def test_a_device_needs_python_3_9() -> None:
    for path in Path(str(measuring.__file__)).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not [one for one in calls if any(word.arg in ("strict", "slots", "kw_only") for word in one.keywords)]
        assert "from __future__ import annotations" in path.read_text(encoding="utf-8") or len(tree.body) == 1


def test_a_strangers_python_measures(tmp_path: Path) -> None:
    """CONVSURGEON_DEVICE_PYTHON names one with numpy and onnxruntime: 3.9 with 1.19.2, 3.10 with 1.20."""
    python = os.environ.get("CONVSURGEON_DEVICE_PYTHON")
    if not python:
        pytest.skip("CONVSURGEON_DEVICE_PYTHON is not set")
    out = tmp_path / "device"
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.PReLU(16), nn.ConvTranspose2d(16, 16, 4, 2))
    write_device_folder(net.eval(), EXAMPLE, FORMS, out)
    command = [python, "-I", str(out / "measure.py"), "--passes", "1", "--power", "quiet"]
    options = ["--options", "session.intra_op.allow_spinning=0"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    raw = LatencyTable.load(out / "device.json").measurements
    assert (raw.power, raw.options) == ("quiet", {"session.intra_op.allow_spinning": "0"})
    loaded = cs.Runtime.load(out / "device.json")
    assert loaded.options == raw.options
    assert loaded.table is not None
    assert all(loaded.table.ms(site, None) > 0 for site in raw.sites)
    assert len(raw.sites) == 2
    refused = subprocess.run([*command, "--provider", "NoProvider"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "NoProvider" in refused.stderr
