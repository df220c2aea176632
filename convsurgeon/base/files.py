"""Reads what users name, and writes files and folders that appear whole or not at all.

What is written lies in a temporary folder beside its place and is renamed into it at the end. An error or Ctrl-C leaves
what was there before. A killed process leaves a temporary folder, `.NAME.*`, which may be deleted.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convsurgeon.base.errors import LoadError, WriteError, expect, reason

_OF_THE_SYSTEM = (".DS_Store", "Thumbs.db", "desktop.ini", "._")
"""How the names of files begin that a file manager leaves in a folder that somebody looked into."""
_FULL_BYTES = 1 << 18
"""A disk with less free space is full."""


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a file that a user names.

    Raises:
        OSError: it cannot be read, or is a folder, a device or a pipe, which may never end.
        ValueError: it is not UTF-8.
    """
    return read_bytes(path).decode("utf-8")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file that a user names.

    Raises:
        OSError: it cannot be read, or is a folder, a device or a pipe, which may never end.
    """
    expect(path, (str, os.PathLike), "path: expected a string or a Path", LoadError)
    place = Path(path)
    if "\0" in str(place):
        raise OSError(errno.EINVAL, "a file's name cannot hold a NUL", str(place))
    if place.exists() and not place.is_file():
        raise OSError(errno.EINVAL, "is a folder, a device or a pipe", str(place))
    return place.read_bytes()


def cache_folder(given: str | Path | None = None) -> Path:
    """Return the folder that is given, or the user's: `CONVSURGEON_CACHE`, or what the system has for this purpose."""
    if given is not None:
        return Path(given)
    if own := os.environ.get("CONVSURGEON_CACHE"):
        return Path(own)
    try:
        home = Path.home()
    except RuntimeError:  # a user without one, as in containers
        home = Path(tempfile.gettempdir())
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "convsurgeon"


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a temporary folder, and delete it at the end.

    Raises:
        WriteError: the system has no place for one, or something failed inside the block and the disk is full.
    """
    try:
        held = tempfile.TemporaryDirectory(prefix="convsurgeon-", ignore_cleanup_errors=True)
    except OSError as error:
        raise WriteError(f"no temporary folder can be made ({reason(error)}); set TMPDIR to one") from error
    with held as folder:
        try:
            yield Path(folder)
        except Exception as error:  # as others' code has it, onnxruntime's "protobuf serialization failed" among them
            if shutil.disk_usage(folder).free > _FULL_BYTES:
                raise
            place = tempfile.gettempdir()
            raise WriteError(f"{place}: no space for temporary files; set TMPDIR to a larger folder") from error


def write_values(path: Path, values: memoryview) -> None:
    """Write a temporary file that is to be mapped; a disk that is full while a mapped file is filled kills the process.

    Raises:
        WriteError: it does not fit.
    """
    try:
        path.write_bytes(values)
    except OSError as error:
        place = tempfile.gettempdir()
        raise WriteError(f"{place}: cannot hold activations ({reason(error)}); set TMPDIR to a larger one") from error


def check_file(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """Return the path if `new_file` can write there; also asked before long work."""
    target = _path(path)
    if target.is_dir():
        raise WriteError(f"{target}: is a folder; name a file in it")
    if target.exists() and not target.is_file():
        raise WriteError(f"{target}: is a device or a pipe; choose another name")
    if target.exists() and not overwrite:
        raise WriteError(f"{target}: exists already; pass overwrite=True (--force) or another name")
    _check_parent(target)
    return target


@contextmanager
def new_file(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path, and move the file there into its place if the block ends well.

    Raises:
        WriteError: `path` exists and `overwrite` is false, or its folder is missing, read-only or full.
    """
    target = check_file(path, overwrite)
    with _beside(target) as folder:
        draft = folder / target.name
        yield draft
        draft.replace(target)


def check_folder(path: str | os.PathLike[str], overwrite: bool, ours: frozenset[str] = frozenset()) -> Path:
    """Return the absolute path if `new_folder` can write there; also asked before long work."""
    target = _path(path).absolute()
    if not str(target).isascii() and str(target) != str(target).encode(errors="replace").decode():
        raise WriteError(
            f"{ascii(str(target))[1:-1]}: holds letters that this locale does not know, which onnxruntime cannot open; "
            "set PYTHONUTF8=1, or choose another name"
        )
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise WriteError(f"{target}: is not a folder; choose another name")
    every = sorted(entry.name for entry in target.iterdir()) if target.exists() else []
    there = [name for name in every if not name.startswith(_OF_THE_SYSTEM)]
    if there and not overwrite:
        raise WriteError(f"{target}: exists already; pass overwrite=True (--force) or another name")
    if foreign := [name for name in there if name not in ours]:
        raise WriteError(f"{target}: holds {foreign[0]}, which is not ours to delete; choose another folder")
    _check_parent(target)
    return target


@contextmanager
def new_folder(
    path: str | os.PathLike[str], overwrite: bool = False, ours: frozenset[str] = frozenset()
) -> Iterator[Path]:
    """Give a temporary folder, and move it, whole, into its place if the block ends well.

    A folder that is there is replaced only if every entry in it is one of `ours`, or what a file manager leaves behind:
    nobody's home is deleted by mistake.

    Raises:
        WriteError: `path` exists and `overwrite` is false, holds other files, or its parent is missing or read-only.
    """
    target = check_folder(path, overwrite, ours)
    with _beside(target) as folder:
        new, old = folder / "new", folder / "old"
        new.mkdir()
        yield new
        try:
            if target.exists():
                target.rename(old)
            new.rename(target)
        except BaseException:
            if old.exists() and not target.exists():
                old.rename(target)
            raise


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Give a temporary folder on the target's own disk; what the system refuses is an WriteError."""
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name[:100]}.", dir=target.parent, ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder)
    except OSError as error:
        raise WriteError(f"{target}: cannot be written ({reason(error)}); choose another place") from error


def _path(path: str | os.PathLike[str]) -> Path:
    expect(path, (str, os.PathLike), "path: expected a string or a Path", WriteError)
    if "\0" in os.fspath(path):
        raise WriteError(f"{os.fspath(path)!r}: a file's name cannot hold a NUL; choose another name")
    try:
        Path(path).absolute().exists()  # fails for a name that is too long, and where the working directory was deleted
    except OSError as error:
        raise WriteError(f"{str(path)[:200]}: cannot be written ({reason(error)}); choose another place") from error
    return Path(path)


def _check_parent(target: Path) -> None:
    if not target.parent.is_dir():
        raise WriteError(f"{target.parent}: no such folder; create it first")
    if not os.access(target.parent, os.W_OK):
        raise WriteError(f"{target}: cannot be written, its folder is read-only; choose another place")
