"""What README and the guide show runs as it stands, and their links lead somewhere."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import convsurgeon as cs
from tests import reference

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".", "examples", "convsurgeon", "convsurgeon/*", ".github", "tests/benchmarks", "tests/zoo")
PAGES = sorted(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.md"))


def _blocks(page: Path) -> Iterator[str]:
    """Yield the Python blocks of a page, at the lines where they stand, so that an error names the right one."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield "\n" * text[: found.start(1)].count("\n") + found[1]


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (ROOT / "examples").glob("digits*"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, object] = {}
    for block in _blocks(ROOT / "examples" / "guide.md"):
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
