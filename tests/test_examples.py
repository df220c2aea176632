"""The examples start, and the shortest one does what it says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(autouse=True)
def _beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as Python does for a script
    monkeypatch.setattr("sys.argv", ["example", "--help"])


@pytest.mark.parametrize("name", ["for_a_device", "recover_cifar", "segment", "train_digits"])
def test_an_example_starts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "train_digits":
        pytest.importorskip("sklearn")
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert "usage" in capsys.readouterr().out


def test_the_last_stage_alone_is_rewritten(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "last_stage.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "rank 1, stage3.0.conv, stage3.1.conv" in shown
    assert "accuracy" in shown
