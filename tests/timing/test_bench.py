from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from convsurgeon import cli
from convsurgeon.base.errors import LatencyError
from convsurgeon.onnx.exporter import export
from convsurgeon.timing.benchmark import Bench, bench
from convsurgeon.timing.node_profile import NodeShare, Profile
from tests.onnx.small import conv_stack, net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def found(folder: Path) -> Bench:
    files = [conv_stack(folder / f"{layers}.onnx", layers) for layers in (6, 3, 6)]
    own = export(net(), torch.randn(1, 3, 12, 12), folder / "net.onnx").path
    return bench(*files[:2], own, pairs=50, threads=(1, 1), levels=("all", "extended"), progress=False)


def test_any_number_of_files_in_every_setting(found: Bench) -> None:
    assert [(timing.threads, timing.level) for timing in found.timings] == [(1, "all"), (1, "extended")]
    assert [row.name for row in found.main.rows] == ["6.onnx", "3.onnx", "net.onnx"]
    assert found.fewer_macs[:2] == (1.0, 2.0)
    assert [one.macs for one in found.work[:2]] == [6 * 16 * 16 * 9 * 144, 3 * 16 * 16 * 9 * 144]
    assert all(one.peak_bytes > one.idle_bytes > 10**6 for one in found.memory)


def test_it_prints_everything_and_saves(found: Bench) -> None:
    text = str(found)
    for word in ("median, ms", "90 %, ms", "load, ms", "first run, ms", "peak MB", "fewer MACs", "speed-up", "verdict"):
        assert word in text
    assert "Latency in other settings" in text
    assert "conv3" in text
    assert "layer1.0.conv1" in text
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [file["name"] for file in values["files"]] == ["6.onnx", "3.onnx", "net.onnx"]
    assert values["files"][1]["macs"] == found.work[1].macs
    assert len(values["timings"]) == 2
    moved = found.moved_to(Path("elsewhere"))
    assert moved.main.rows[1].path == str(Path("elsewhere") / "3.onnx")


def test_shares_hold_all_the_time(found: Bench) -> None:
    owners = found.owners()
    for index, profile in enumerate(found.profiles):
        assert math.isclose(sum(times[index] for times in owners.values()), profile.total_ms)
    assert len(found.shares.rows) == 13  # twelve modules, and the rest in one line


def test_nodes_go_to_the_module_they_belong_to() -> None:
    names = {"a.conv": 1.0, "a.conv.branches.0.depthwise": 2.0, "a.conv_1": 4.0, "a.convex": 8.0, "b": 16.0}
    nodes = [NodeShare(name, "Conv", ms, 0.1, False) for name, ms in names.items()]
    profile = Profile((*nodes, NodeShare("reorder", "ReorderInput", 32.0, 0.1, True)), 1, "all")
    assert profile.by_owner(["a.conv", "c"]) == {"a.conv": 7.0, "a.convex": 8.0, "b": 16.0, "(layout)": 32.0}
    assert profile.by_owner([])["a.conv.branches.0.depthwise"] == 2.0


def test_files_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        conv_stack(tmp_path / name / "model.onnx", 2, channels=4, batch="n")
    paths = [str(tmp_path / name / "model.onnx") for name in ("one", "two")]
    command = ["bench", *paths, "--pairs", "50", "--threads", "1", "--level", "basic", "--batch", "2", "--json"]
    assert cli.main(command) == 0
    values = json.loads(capsys.readouterr().out)
    assert [file["name"] for file in values["files"]] == paths
    assert values["files"][0]["macs"] == 2 * 2 * 4 * 4 * 9 * 144
    assert values["timings"][0]["batch"] == 2


@pytest.mark.usefixtures("found")
def test_refusals(folder: Path) -> None:
    path = folder / "6.onnx"
    with pytest.raises(LatencyError, match="levels: the list is empty"):
        bench(path, path, levels=())
    with pytest.raises(LatencyError, match="threads=0: this machine has"):
        bench(path, path, threads=[0], progress=False)
    with pytest.raises(LatencyError, match="needs two files or more"):
        bench(path)
