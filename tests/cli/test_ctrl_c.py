"""Ctrl-C at any moment: exit code 130, one line, nothing left; and a standard output that is full."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests import nets
from tests.fuzz.files import network

ROOT = Path(__file__).resolve().parents[2]
NET = [f"{nets.__file__}:Plain", "--input", "1x3x16x16"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are posix's")


def _commands(place: Path) -> dict[str, list[str]]:
    images, out = str(place / "images.npy"), str(place / "out")
    np.save(images, np.random.default_rng(0).standard_normal((64, 3, 16, 16)).astype(np.float32))
    (place / "net.onnx").write_bytes(network())
    fit, made = ["--calibrate", images], ["--from", str(place / "made"), "--data", images]
    return {
        "inspect": ["inspect", *NET],
        "convert": ["convert", *NET, *fit, "--int8", "--out", out, "--pairs", "50"],
        "sweep": ["sweep", *NET, *fit, "--shares", "0.5", "0.3"],
        "latency": ["plan", *NET, "--budget", "latency=0.9", "--rank", "1", "2"],
        "device": ["device", *NET, "--out", out, "--rank", "1"],
        "bench": ["bench", str(place / "net.onnx"), str(place / "net.onnx"), "--pairs", "60"],
        "recover": ["recover", *NET, *made, "--epochs", "2", "--run", str(place / "run"), "--lr", "1e-3"],
    }


def _run(command: Sequence[str], system: Path, after_s: float | None) -> tuple[int, str, float]:
    """Exit code, what stood on stderr, and the seconds it ran; interrupted after so many."""
    environment = {**os.environ, "TMPDIR": str(system), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["CONVSURGEON_CACHE"] = str(system.parent / "cache")
    started = time.perf_counter()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-m", "convsurgeon", *command], env=environment, text=True, **pipes
    ) as child:
        if after_s is not None:
            time.sleep(after_s)
            child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=300)
    return child.returncode, told, time.perf_counter() - started


@pytest.mark.parametrize(
    ("name", "signals"),
    [
        ("inspect", 2),
        *(
            pytest.param(name, 8, marks=pytest.mark.slow)
            for name in ("inspect", "convert", "sweep", "latency", "device", "bench", "recover")
        ),
    ],
)
def test_signals_at_random_moments(name: str, signals: int, tmp_path: Path) -> None:
    """Python's own start, its first 0.1 s, is Python's affair: its traceback there names none of ours."""
    system, chance = tmp_path / "system", random.Random(f"{name} {signals}")
    system.mkdir()
    command = _commands(tmp_path)[name]
    if name == "recover":
        made = ["--calibrate", "none", "--rank", "1", "--pairs", "0", "--out", str(tmp_path / "made")]
        assert _run(["convert", *NET, *made], system, None)[0] == 0
    here = {path.name for path in tmp_path.iterdir()}
    whole_s = _run(command, system, None)[2]
    for _ in range(signals):
        for left in ("out", "run", "cache"):
            subprocess.run(["rm", "-rf", str(tmp_path / left)], check=True)
        code, told, _ = _run(command, system, chance.uniform(0.15, whole_s))
        if code == 0:  # it was faster
            continue
        lines = told.splitlines()
        assert code == 130, told
        assert lines[-1].startswith("convsurgeon: interrupted; "), told
        assert all(line.startswith("convsurgeon: ") for line in lines), told  # what stands before is progress
        assert not [*system.glob("convsurgeon*"), *system.glob("tmp*")]  # the runtime leaves .ses there
        assert {path.name for path in tmp_path.iterdir()} - here <= {"run", "cache"}
        hidden = (path for path in tmp_path.rglob(".*") if path.is_file() and path.parent != system)
        assert not list(hidden)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_a_full_standard_output_is_a_line() -> None:
    command = [sys.executable, "-m", "convsurgeon", "inspect", *NET]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == "convsurgeon: cannot be written (No space left on device); make room, or write elsewhere\n"
