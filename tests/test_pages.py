"""What README and the guide show runs as it stands, and their links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convsurgeon as cs
from convsurgeon.cli.main import main, parse
from tests import reference

pytestmark = pytest.mark.usefixtures("all_epochs")

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".", "examples", "convsurgeon", "convsurgeon/*", ".github", "tests/benchmarks", "tests/zoo")
PAGES = sorted(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.md"))


README, GUIDE = ROOT / "README.md", ROOT / "examples" / "guide.md"


def _blocks(page: Path, language: str = "python") -> Iterator[str]:
    """Yield the blocks of a page, at the lines where they stand, so that an error names the right one."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield "\n" * text[: found.start(1)].count("\n") + found[1]


def _commands(page: Path) -> list[list[str]]:
    """Return the arguments of every call of convsurgeon that a page shows for a shell."""
    lines = "".join(_blocks(page, "sh")).replace("\\\n", "").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [one[one.index("convsurgeon") + 1 :] for one in words if "convsurgeon" in one and "..." not in one]


def test_readmes_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (command,) = _commands(README)
    assert main([str(tmp_path / word) if word == "lighter" else word for word in command]) == 0
    printed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line}
    assert {"accuracy", "ms", "MB", "MACs", "How"} <= printed
    assert (tmp_path / "lighter" / "report.html").exists()


def test_readme_passes_the_tests_as_ci_does() -> None:
    *_, last = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert f"pip install torch==2.13.0 -e '.[test]' && {last}\n" in "".join(_blocks(README, "sh"))


def test_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (24, 20, 16, 3), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    for block in _blocks(README):
        exec(compile(block, "README.md", "exec"), {"model": model, "example": torch.zeros(1, 3, 16, 16)})
    assert (tmp_path / "lighter" / "model.onnx").exists()


def test_readmes_results_are_those_that_were_measured() -> None:
    """Each figure is the mean over the draws of images, rounded as it is shown."""
    measured = json.loads((ROOT / "tests" / "benchmarks" / "results" / "networks.json").read_text(encoding="utf-8"))
    lines = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    shown = [line.strip("| ").split(" | ") for line in lines if len(line.split(" | ")) == 6][1:]  # below the heading
    assert len(shown) >= 5
    for first, before, after, lost, times, seconds in shown:
        name = first.split("`")[1].strip('"')
        rows = [row for row in measured["rows"] if (row["network"], row["goal"]) == (name, "default")]
        columns = {"before": before, "after": after, "lost": lost.split(" ")[0], "processor s": seconds}
        columns |= {"times as fast": times} if times != "left as it was" else {}
        for column, text in columns.items():
            found, places = sum(row[column] for row in rows) / len(rows), len(text.partition(".")[2])
            assert abs(found - float(text)) <= 0.501 * 10**-places, (name, column, found)


@pytest.mark.parametrize("page", [README, GUIDE], ids=lambda page: page.name)
def test_commands_have_the_options_that_pages_show(page: Path) -> None:
    commands = _commands(page)
    assert commands
    assert [parse(command).command for command in commands] == [command[0] for command in commands]


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (ROOT / "examples").glob("digits*"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, object] = {}
    for block in _blocks(GUIDE):
        exec(compile(block, "guide.md", "exec"), names)
    assert (tmp_path / "bundle" / "model.onnx").exists()


def test_the_reference_says_what_the_docstrings_say() -> None:
    text = reference.PAGE.read_text(encoding="utf-8")
    assert text == reference.make(), "run python -m tests.reference"
    assert all(f"### cs.{name}\n" in text for name in cs.__all__ if name not in ("onnx", "timing", "select", "errors"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target
