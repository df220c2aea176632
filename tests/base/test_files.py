"""Folders appear whole or not at all, whatever happens to the process that writes them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest

from convsurgeon.base.errors import WriteError
from convsurgeon.base.files import check_folder, new_file, new_folder, read_text, scratch, write_values

NAMES = frozenset({"a", "b"})


def written(path: Path, text: str) -> None:
    with new_folder(path, True, NAMES) as folder:
        for name in NAMES:
            (folder / name).write_text(text)


def read(path: Path) -> str:
    texts = {(path / name).read_text() for name in NAMES}
    assert {entry.name for entry in path.iterdir()} == NAMES
    (text,) = texts
    return text


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out[1]"
    for text in ("first", "second", "third"):
        written(target, text)
        assert read(target) == text
    with pytest.raises(ZeroDivisionError, match="division"), new_folder(target, True, NAMES) as folder:
        (folder / "a").write_text(str(1 / 0))
    assert read(target) == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["out[1]"]


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "._model.onnx"])
def test_what_a_file_manager_leaves_is_no_reason_to_refuse(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_text("seen")
    with new_folder(folder) as draft:  # as good as empty
        (draft / "a.txt").write_text("1")
    (folder / name).write_text("seen")
    with new_folder(folder, overwrite=True, ours=frozenset({"a.txt"})) as draft:
        (draft / "a.txt").write_text("2")
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
    with pytest.raises(WriteError, match=r"a\.txt"):
        check_folder(folder, overwrite=True, ours=frozenset({name}))


def test_a_name_that_the_locale_does_not_know_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"\\udcc3.*PYTHONUTF8"):  # what Python makes of it under LC_ALL=C
        check_folder(tmp_path / "\udcc3\udcbcber", overwrite=False)
    assert check_folder(tmp_path / "über", overwrite=False).name == "über"


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    written(target, "old")
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


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    message = r"out: cannot be written \(No space left on device\); choose another place$"
    for new in (new_file, new_folder):
        with pytest.raises(WriteError, match=message), new(tmp_path / "out"):
            raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(WriteError, match="/dev/full: is a device or a pipe"), new_file("/dev/full", True):
        pass
    with pytest.raises(WriteError, match="/dev/full: is not a folder"), new_folder("/dev/full", True):
        pass


@pytest.mark.parametrize("write", [new_file, new_folder])
def test_a_name_with_a_nul_is_a_line(write: Callable[[str], AbstractContextManager[Path]]) -> None:
    with pytest.raises(WriteError, match=r"'a\\x00b': .* NUL"), write("a\0b"):
        pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes with names")
@pytest.mark.parametrize("name", [".", "pipe", "/dev/zero"])
def test_what_may_never_end_is_not_read(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is a folder, a device or a pipe"):
        read_text(tmp_path / name)


def test_a_file_of_text_is_read_as_utf_8(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("Größe\n".encode())
    assert read_text(tmp_path / "text") == "Größe\n"
    (tmp_path / "text").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        read_text(tmp_path / "text")
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_text(tmp_path / "nothing")


def test_a_disk_without_space_for_activations_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = memoryview(bytes(range(250)) * 20)
    write_values(tmp_path / "values", values)
    assert (tmp_path / "values").read_bytes() == values

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match="TMPDIR"):
        write_values(tmp_path / "values", values)


@pytest.mark.parametrize(("free", "raised"), [(0, WriteError), (1 << 30, ValueError)])
def test_what_fails_on_a_full_disk_is_said_as_that(
    free: int, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(raised), scratch():
        raise ValueError("protobuf serialization failed")
