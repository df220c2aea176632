"""Writing without ever leaving half a file, or losing one that was there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convsurgeon.errors import OutputError

BUNDLE = frozenset({"original.onnx", "model.onnx", "weights.safetensors", "plan.json", "report.json", "report.md"})
"""What an exported folder holds; one with anything else in it is never replaced."""


@contextmanager
def new_file(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary path beside `path` and moves it into place when the block ends well.

    Raises:
        OutputError: `path` exists and `overwrite` is false, or its folder is missing or read-only.
    """
    target = Path(path)
    if target.is_dir() or (target.exists() and not overwrite):
        raise OutputError(f"{target}: exists already; pass overwrite=True or another name")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise OutputError(
            f"{target}: cannot be written ({error.strerror}); choose a folder you can write to"
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files private  # noqa: PTH101
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path: str | os.PathLike[str], overwrite: bool, ours: frozenset[str]) -> Path:
    """The absolute path, if `new_folder` could write there; made to be asked before long work, too.

    Raises:
        OutputError: as `new_folder`.
    """
    target = Path(path).absolute()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OutputError(f"{target}: is not a folder; choose another name")
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise OutputError(f"{target}: exists already; pass overwrite=True (--force) or another name")
    foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in ours) if target.exists() else []
    if foreign:
        raise OutputError(f"{target}: holds {foreign[0]}, which is not ours to delete; choose another folder")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target}: cannot be written (its folder is missing or read-only); choose another")
    return target


@contextmanager
def new_folder(
    path: str | os.PathLike[str], overwrite: bool = False, ours: frozenset[str] = frozenset()
) -> Iterator[Path]:
    """Gives a temporary folder beside `path` and moves it into place, whole, when the block ends well.

    An existing folder is replaced only if every entry in it is one of `ours`: nobody's home is deleted by mistake. A
    kill between the two renames leaves the old folder, complete, under `.NAME.old.*`.

    Raises:
        OutputError: `path` exists and `overwrite` is false, holds other files, or its parent is missing or read-only.
    """
    target = check_folder(path, overwrite, ours)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        temporary.chmod(0o777 & ~_umask())
    except OSError as error:
        raise OutputError(
            f"{target}: cannot be written ({error.strerror}); choose a folder you can write to"
        ) from error
    try:
        yield temporary
        _swap(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, target: Path) -> None:
    """Puts `new` where `target` is; if the second rename fails the old folder is put back."""
    if not target.exists():
        new.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    old.rmdir()
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
