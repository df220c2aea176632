"""SIGKILL at random moments of an export into an existing bundle: the old one intact or the new one complete."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from convsurgeon.planning.plan import Plan

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


class Exporter:
    """The process of `bundles.py`."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.bundle.bundles", str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, **pipes)  # type: ignore[call-overload]
        assert self.process.stdout.readline().strip() == "ready"

    def export(self, rank: int, kill_after_s: float | None = None) -> int:
        """One export, killed or not; the exit code of its process."""
        self.process.stdin.write(f"{rank}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(child, signal.SIGKILL)
        return int(self.process.stdout.readline().split()[1])

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[Exporter]:
    made = Exporter(tmp_path)
    yield made
    made.close()


def state(out: Path) -> int:
    """The rank of a bundle, after checking that it is one and whole."""
    lines = [line.split("  ") for line in (out / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in lines} | {"SHA256SUMS"} == {path.name for path in out.iterdir()}
    for digest, name in lines:
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest, name
    (rank,) = {change.rank for change in Plan.load(out / "plan.json").changes.values()}
    return rank


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_the_old_bundle_or_the_new_one(exporter: Exporter, tmp_path: Path, kills: int) -> None:
    out, chance = tmp_path / "out", random.Random(kills)
    assert exporter.export(1) == 0
    started = time.perf_counter()
    assert exporter.export(2) == 0
    whole_s = time.perf_counter() - started
    died, tries = 0, 10 * kills
    while died < kills and tries:
        rank, started, tries = state(out), time.perf_counter(), tries - 1
        code = exporter.export(3 - rank, chance.uniform(0, whole_s))
        assert state(out) in (1, 2)
        assert code in (0, -signal.SIGKILL)
        died += code != 0
        if code == 0:  # the first one was disturbed: kills are to come while an export goes on
            whole_s = min(whole_s, time.perf_counter() - started)
    assert died == kills
    assert exporter.export(1) == 0
    assert state(out) == 1
    assert all(path.name == "out" or path.name.startswith(".out.") for path in tmp_path.iterdir())
