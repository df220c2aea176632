"""The runner of the benchmarks: it lists them, keeps rows with their circumstances, and makes the page from them."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks import __main__ as command, calibration, page, picture, runner


def test_the_list_names_every_benchmark_with_its_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(command.NAMES)
    assert all(line.endswith("?") for line in lines)


@pytest.mark.parametrize("name", command.NAMES)
def test_every_benchmark_starts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main([name, "--help"])
    assert "--threads" in capsys.readouterr().out


def test_what_a_benchmark_leaves_out_is_there() -> None:
    for ingredient in calibration.INGREDIENTS:
        with calibration.without(ingredient):
            pass


def test_the_page_is_what_the_json_files_say() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.text(), "run python -m tests.benchmarks page"


def test_a_run_keeps_its_rows_and_circumstances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ModuleType("made")
    made.run = lambda _options: iter([{"a": 1, "b": 0.51234567, "nested": {"x": 1}}, {"a": 2}])  # type: ignore[attr-defined]
    options = argparse.Namespace(threads=1, out=tmp_path / "frozen.json")
    runner.run("frozen", made, options, ["--networks", "digits", "--out", "elsewhere.json"])
    held = json.loads(options.out.read_text(encoding="utf-8"))
    assert [row["a"] for row in held["rows"]] == [1, 2]
    assert held["command"] == "python -m tests.benchmarks frozen --networks digits"
    assert {"date", "revision", "machine", "versions", "load", "minutes", "threads"} <= set(held)
    shown = capsys.readouterr().out
    assert "0.5123 " in shown
    assert "nested" not in shown


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_tiny_networks_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.benchmarks.gpu.MOST_ROUNDS", 2)
    monkeypatch.setattr("tests.benchmarks.gpu.SAMPLE_MS", 0.1)
    where = tmp_path / "gpu.json"
    sizes = ["--tiny", "--device", "cpu", "--seconds", "600", "--runtimes", "torch", "onnxruntime"]
    assert command.main(["gpu", "unet", *sizes, "--out", str(where)]) == 0
    rows = json.loads(where.read_text(encoding="utf-8"))["rows"]
    groups = {(row["runtime"], row["precision"]) for row in rows}
    assert len(groups) == 4
    timed = {row.get("form"): row for row in rows if row["runtime"] == "torch" and row["precision"] == "fp16"}
    assert {"dense", "separable", "cp", "spatial"} <= set(timed)
    assert all(row["ms"] > 0 for row in timed.values())


def test_the_script_for_a_gpu_wants_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="CUDA"):
        command.main(["gpu", "--out", str(tmp_path / "gpu.json")])


def test_constants_are_where_the_page_says_with_the_value_that_it_says() -> None:
    house = runner.ROOT / "convsurgeon"
    lines = (runner.RESULTS.parent / "CONSTANTS.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    assert not [where for _, where, *_ in rows if not (house / where.strip("`")).exists()]
    for what, where, value, _ in rows:
        if not re.fullmatch(r"`\w+`", what):
            continue
        path, name = house / where.strip("`"), what.strip("`")
        own = [
            line for line in path.read_text(encoding="utf-8").splitlines() if re.match(rf"[\w, ]*\b{name}\b.* = ", line)
        ]
        assert own, f"{name} is not in {where}"
        if re.fullmatch(r"[\d.e-]+", value):
            assert any(value in line for line in own), f"{name}: {own} is not {value}"


@pytest.mark.parametrize("network", picture.NETWORKS)
def test_readmes_picture_shows_what_loses_least_of_each_way(network: str) -> None:
    rows = json.loads((runner.RESULTS / "alternatives.json").read_text(encoding="utf-8"))["rows"]
    mine = [row for row in rows if row["network"] == network]
    shown = {way: row for way in picture.WAYS if (row := picture.best(mine, way)) is not None}
    assert {"converted", "int8"} <= set(shown)
    assert len(shown) >= 3
    assert not any(row["way"].endswith("at once") for row in shown.values())
    assert all({"times as fast", "after", "±"} <= set(row) for row in shown.values())
