"""The examples start, and the notebooks run in their short versions."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("name", ["recover_cifar", "train_digits"])
def test_an_example_starts(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "train_digits":
        pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as Python does for a script
    monkeypatch.setattr("sys.argv", ["example", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in EXAMPLES.glob("digits*"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells)  # outputs would be of an older version
    text = ["".join(cell["source"]) for cell in cells]
    assert text[0].startswith("QUICK = False")
    names: dict[str, object] = {"__name__": "__main__"}
    for index, code in enumerate(["QUICK = True", *text[1:]]):
        exec(compile(code, f"{path.name}, code cell {index}", "exec"), names)


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {"segmenter", "onnx_file", "by_hand", "raspberry_pi"}
