"""Folders appear whole or not at all, whatever happens to the process that writes them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from convsurgeon.base import files
from convsurgeon.base.errors import WriteError
from convsurgeon.base.files import new_file, new_folder, text_of
from convsurgeon.base.stale_files import scratch

NAMES = frozenset({"a", "b"})
SWAP_FOREVER = """
import sys
from convsurgeon.base import files
if sys.argv[2] == "two renames":
    files._exchanged = lambda one, two: False
count = 0
print("ready", flush=True)
while True:
    count += 1
    with files.new_folder(sys.argv[1], True, frozenset({"a", "b"})) as folder:
        for name in "ab":
            (folder / name).write_text(str(count))
"""


def written(path: Path, text: str) -> None:
    with new_folder(path, True, NAMES) as folder:
        for name in NAMES:
            (folder / name).write_text(text)


def read(path: Path) -> str:
    texts = {(path / name).read_text() for name in NAMES}
    assert {entry.name for entry in path.iterdir()} == NAMES
    (text,) = texts
    return text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="exchanging names in one step is Linux's")
def test_killed_while_swapping_all_the_time(tmp_path: Path) -> None:
    """Nothing but swaps, so that the kills hit them; a mixture or a missing folder fails."""
    target, chance, seen = tmp_path / "out", random.Random(0), set()
    written(target, "0")
    for _ in range(20):
        command = [sys.executable, "-c", SWAP_FOREVER, str(target), "exchange"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0, 0.03))
            child.send_signal(signal.SIGKILL)
        seen.add(read(target))
    assert len(seen) > 5  # it did swap
    written(target, "last")
    assert read(target) == "last"
    assert os.listdir(tmp_path) == ["out"]  # noqa: PTH208


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_between_two_renames(tmp_path: Path) -> None:
    """Where names cannot be exchanged a kill may leave the old folder aside; the next write finds it."""
    target, chance = tmp_path / "out", random.Random(1)
    written(target, "0")
    for _ in range(10):
        command = [sys.executable, "-c", SWAP_FOREVER, str(target), "two renames"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0, 0.03))
            child.send_signal(signal.SIGKILL)
        files._recover(target)
        read(target)


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(files, "_exchanged", lambda *_: False)


@pytest.mark.usefixtures("_either_way")
def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out[1]"
    for text in ("first", "second", "third"):
        written(target, text)
        assert read(target) == text
    with pytest.raises(ZeroDivisionError, match="division"), new_folder(target, True, NAMES) as folder:
        (folder / "a").write_text(str(1 / 0))
    assert read(target) == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["out[1]"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    written(target, "old")
    monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    rename, calls = Path.rename, []

    def second_fails(self: Path, to: Path) -> Path:
        calls.append(to)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(WriteError, match=r"out: cannot be written \(No space left on device\)"):
        written(target, "new")
    assert read(target) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_dead_writers_left_is_removed_and_what_living_ones_hold_is_not(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (tmp_path / ".out.dead.part").mkdir()
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".other.dead.part").mkdir()
    with new_folder(target, True, NAMES) as held:
        written(target, "second")
        assert held.is_dir()
        for name in NAMES:
            (held / name).write_text("first, but slower")
    assert read(target) == "first, but slower"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.dead.part", "out"]


def test_a_folder_left_aside_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "out"
    written(target, "old")
    target.rename(tmp_path / ".out.x.old")
    with pytest.raises(WriteError, match="exists already"), new_folder(target, False, NAMES):
        pass
    assert read(target) == "old"
    (tmp_path / ".out.x.old").mkdir()
    written(target, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    message = r"out: cannot be written \(No space left on device\); choose another place$"
    for new in (new_file, new_folder):
        with pytest.raises(WriteError, match=message), new(tmp_path / "out"):
            raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys, time
from pathlib import Path
from convsurgeon.base.files import new_file
from convsurgeon.base.stale_files import scratch
with scratch() as folder, new_file(sys.argv[1], True) as file:
    (folder / "big").write_text("x")
    file.write_text("half")
    print(file, folder, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="locks are posix's")
def test_what_killed_writers_left_is_removed_and_what_living_ones_hold_is_not(tmp_path: Path) -> None:
    target, system = tmp_path / "a[1].pt", tmp_path / "system"
    system.mkdir()
    environment = {**os.environ, "TMPDIR": str(system)}
    command = [sys.executable, "-c", KILLED, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        left = [Path(one) for one in child.stdout.readline().split()]
        os.utime(left[0], (0, 0))
        os.utime(left[1], (0, 0))
        _write_and_open(target, system)
        assert all(one.exists() for one in left)
        child.send_signal(signal.SIGKILL)
    (tmp_path / ".a[1].pt.mine.pt").write_text("somebody's own")
    _write_and_open(target, system)
    assert not any(one.exists() for one in left)
    assert {one.name for one in tmp_path.iterdir()} == {"system", target.name, ".a[1].pt.mine.pt"}
    assert not list(system.iterdir())


def _write_and_open(target: Path, system: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(system))
        with scratch() as folder, new_file(target, True) as file:
            assert folder.parent == system
            file.write_text("whole")
    assert target.read_text() == "whole"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(WriteError, match="/dev/full: is a device or a pipe"), new_file("/dev/full", True):
        pass
    with pytest.raises(WriteError, match="/dev/full: is not a folder"), new_folder("/dev/full", True):
        pass


@pytest.mark.parametrize("write", [new_file, new_folder])
def test_a_name_with_a_nul_is_a_line(write: Callable[[str], AbstractContextManager[Path]]) -> None:
    with pytest.raises(WriteError, match=r"'a\\x00b': no file has a NUL in its name"), write("a\0b"):
        pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes with names")
@pytest.mark.parametrize("name", [".", "pipe", "/dev/zero"])
def test_what_may_never_end_is_not_read(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is a folder, a device or a pipe"):
        text_of(tmp_path / name)


def test_a_file_of_text_is_read_as_utf_8(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("Größe\n".encode())
    assert text_of(tmp_path / "text") == "Größe\n"
    (tmp_path / "text").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        text_of(tmp_path / "text")
    with pytest.raises(FileNotFoundError, match="nothing"):
        text_of(tmp_path / "nothing")
