"""What is built from the checkout installs elsewhere and works there: the wheel, and the wheel made from the sdist."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _pip(*arguments: object) -> None:
    own = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}  # pip's warnings are pip's
    command = [sys.executable, "-m", "pip", "-q", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, env=own)


def _run(folder: Path, *arguments: str) -> str:
    """Run Python with the installed package only: the checkout is not on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONPATH": "site"}
    command = [sys.executable, *arguments]
    return subprocess.check_output(command, cwd=folder, env=environment, text=True)


def test_a_wheel_from_the_sdist_holds_what_the_checkout_holds(tmp_path: Path) -> None:
    build = f"from hatchling.build import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    _pip("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, next((tmp_path / "source").iterdir()))
    _pip("install", "--no-deps", "--target", tmp_path / "site", next(tmp_path.glob("*.whl")))
    ours, theirs = ROOT / "convsurgeon", tmp_path / "site" / "convsurgeon"
    files = [
        {
            path.relative_to(folder)
            for path in folder.rglob("*")
            if path.is_file() and path.suffix not in (".pyc", ".pyo")
        }
        for folder in (ours, theirs)
    ]
    assert files[0] == files[1]
    where = _run(tmp_path, "-c", "import convsurgeon; print(convsurgeon.__file__, convsurgeon.__version__)")
    assert str(theirs) in where
    _run(tmp_path, "-m", "convsurgeon", "--help")
    model = str(ROOT / "examples" / "digits.py") + ":digit_net"
    assert "stage1" in _run(tmp_path, "-m", "convsurgeon", "inspect", model, "--input", "1x1x32x32")
