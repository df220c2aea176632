from __future__ import annotations

import json
import math
from pathlib import Path

import onnx
import pytest
import torch

from convsurgeon.base.errors import LatencyError
from convsurgeon.onnx.exporter import export
from convsurgeon.timing.memory import peak_memory
from convsurgeon.timing.node_profile import profile
from tests.onnx.small import conv_stack, net


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(net(), torch.randn(1, 3, 12, 12), tmp_path_factory.mktemp("profile") / "net.onnx").path


@pytest.mark.parametrize("level", ["all", "extended", "off"])
def test_every_conv_appears_under_its_module(path: Path, level: str) -> None:
    found = profile(path, runs=5, level=level)  # type: ignore[arg-type]
    convs = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    assert sorted(node.name for node in found.nodes if node.operator.endswith("Conv")) == sorted(convs)
    assert math.isclose(sum(node.share for node in found.nodes), 1)
    assert all(node.ms >= 0 for node in found.nodes)


def test_shares_per_module_and_layout(path: Path) -> None:
    found = profile(path, runs=5)
    times = found.by_owner(["stem", "layer1", "fc"])
    assert {"stem", "layer1", "fc"} <= set(times)
    assert math.isclose(sum(times.values()), found.total_ms)
    assert {node.operator for node in found.nodes if node.inserted} <= {"ReorderInput", "ReorderOutput"}
    assert json.loads(json.dumps(found.to_dict()))["level"] == "all"
    assert "layer1.0.conv1.branches.1.pointwise" in str(found)


def test_nothing_is_left_lying_about(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profile(path, runs=1)
    assert list(tmp_path.iterdir()) == []


def test_more_weights_more_memory(tmp_path: Path) -> None:
    # 100 convs of 256 channels hold 2.4 MB each; 16 MB of images hide nothing of them.
    small = peak_memory(conv_stack(tmp_path / "a.onnx", 1, channels=256, size=4))
    large = peak_memory(conv_stack(tmp_path / "b.onnx", 31, channels=256, size=4))
    assert small.idle_bytes > 10**6
    assert large.peak_bytes - small.peak_bytes > 0.9 * 30 * 256 * 256 * 9 * 4


def test_what_cannot_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"garbage")
    for function in (profile, peak_memory):
        with pytest.raises(LatencyError, match=r"bad\.onnx: is not a"):
            function(tmp_path / "bad.onnx")
    path = conv_stack(tmp_path / "a.onnx", 1)
    monkeypatch.setattr("convsurgeon.timing.memory._CHILD", tmp_path / "nowhere.py")
    with pytest.raises(LatencyError, match=r"a\.onnx: cannot be run in a fresh process: .*nowhere\.py"):
        peak_memory(path)
