"""Writing without ever leaving half a file, or losing one that was there.

A folder is made complete under a temporary name beside its place and moved there in one step, so a process that is
killed at any moment leaves the old folder intact or the new one complete. Where a folder stands there already the step
is an *exchange* of two names, which Linux does atomically (`renameat2` with `RENAME_EXCHANGE`; ext4, xfs, btrfs, tmpfs
and overlayfs know it, NFS does not). Elsewhere it takes two renames: a kill between them leaves the old folder whole
under `.NAME.*.old`, and the next write puts it back first. Nothing is flushed to the disk on purpose: this is about
killed processes, not about power cuts.

What a killed process leaves lying about, `.NAME.*.part` of a folder and `.NAME.*` of a file, is removed by the next
write to the same place (see `leftovers`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convsurgeon.base.errors import WriteError, reason
from convsurgeon.base.stale_files import abandoned, clear_beside, locked

BUNDLE = frozenset(
    {
        *("original.onnx", "model.onnx", "original-int8.onnx", "model-int8.onnx"),
        *("original-fp16.onnx", "model-fp16.onnx", "model-mixed.onnx", "weights.safetensors", "plan.json"),
        *("report.json", "report.md", "report.html", "golden_inputs.npz", "golden_outputs.npz"),
        *("README.md", "SHA256SUMS", "model.onnx.data"),
    }
)
"""What an exported folder may hold; one with anything else in it is never replaced."""

_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_AT_FDCWD = -100


def text_of(path: str | os.PathLike[str]) -> str:
    """What a file of text holds that somebody names.

    Raises:
        OSError: it cannot be read, or is a folder, a device or a pipe, whose end may never come.
        ValueError: it is not UTF-8.
    """
    return bytes_of(path).decode("utf-8")


def bytes_of(path: str | os.PathLike[str]) -> bytes:
    """What a file holds that somebody names.

    Raises:
        OSError: it cannot be read, or is a folder, a device or a pipe, whose end may never come.
    """
    place = Path(path)
    if "\0" in str(place):
        raise OSError(errno.EINVAL, "no file has a NUL in its name", str(place))
    if place.exists() and not place.is_file():
        raise OSError(errno.EINVAL, "is a folder, a device or a pipe", str(place))
    return place.read_bytes()


def check_file(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """The path, if `new_file` could write there; made to be asked before long work, too.

    Raises:
        WriteError: as `new_file`.
    """
    target = _named(path)
    if target.is_dir():
        raise WriteError(f"{target}: is a folder; name a file in it")
    if target.exists() and not target.is_file():
        raise WriteError(f"{target}: is a device or a pipe, which would be replaced by a file; choose another name")
    if target.exists() and not overwrite:
        raise WriteError(f"{target}: exists already; pass overwrite=True (--force) or another name")
    if not target.parent.is_dir():
        raise WriteError(f"{target.parent}: no such folder; create it first")
    _beside(target).unlink(missing_ok=True)
    return target


@contextmanager
def new_file(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary path beside `path` and moves it into place when the block ends well.

    Raises:
        WriteError: `path` exists and `overwrite` is false, or its folder is missing, read-only or full.
    """
    target = check_file(path, overwrite)
    clear_beside(target)
    temporary = _beside(target)
    try:
        with locked(temporary):
            yield temporary
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files private  # noqa: PTH101
            temporary.replace(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path: str | os.PathLike[str], overwrite: bool, ours: frozenset[str]) -> Path:
    """The absolute path, if `new_folder` could write there; made to be asked before long work, too.

    Raises:
        WriteError: as `new_folder`.
    """
    target = _named(path).absolute()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise WriteError(f"{target}: is not a folder; choose another name")
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise WriteError(f"{target}: exists already; pass overwrite=True (--force) or another name")
    foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in ours) if target.exists() else []
    if foreign:
        raise WriteError(f"{target}: holds {foreign[0]}, which is not ours to delete; choose another folder")
    if not os.access(target.parent, os.W_OK):
        raise WriteError(f"{target}: cannot be written (its folder is missing or read-only); choose another")
    return target


@contextmanager
def new_folder(
    path: str | os.PathLike[str], overwrite: bool = False, ours: frozenset[str] = frozenset()
) -> Iterator[Path]:
    """Gives a temporary folder beside `path` and moves it into place, whole, when the block ends well.

    An existing folder is replaced only if every entry in it is one of `ours`: nobody's home is deleted by mistake. See
    the module for what a kill leaves.

    Raises:
        WriteError: `path` exists and `overwrite` is false, holds other files, or its parent is missing or read-only.
    """
    place = _named(path).absolute()
    _recover(place)
    target = check_folder(place, overwrite, ours)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        temporary.chmod(0o777 & ~_umask())
    except OSError as error:
        raise _unwritable(target, error) from error
    with locked(temporary):
        try:
            yield temporary
            _move(temporary, target)
        except OSError as error:
            raise _unwritable(target, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _move(new: Path, target: Path) -> None:
    """Puts `new` where `target` is; afterwards the old folder, if there was one, has the name of the new one."""
    if not target.exists():
        new.rename(target)
    elif not _exchanged(new, target):
        old = new.with_suffix(".old")
        target.rename(old)
        try:
            new.rename(target)
        except BaseException:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, two: Path) -> bool:
    """Swaps two names in one step; False where the system or its file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a libc older than 2018
        return False
    return int(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two), _EXCHANGE)) == 0


def _recover(target: Path) -> None:
    """Puts back a folder that a kill between two renames left aside, and removes what killed writers left."""
    if not target.parent.is_dir():
        return
    # Names are compared, not globbed: a folder's name may hold brackets.
    beside = [entry for entry in target.parent.iterdir() if entry.name.startswith(f".{target.name}.")]
    for old in sorted(entry for entry in beside if entry.suffix == ".old"):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for part in (entry for entry in beside if entry.suffix == ".part" and entry.is_dir()):
        if abandoned(part):
            shutil.rmtree(part, ignore_errors=True)


def _named(path: str | os.PathLike[str]) -> Path:
    """A path that the system can be asked about."""
    if "\0" in os.fspath(path):
        raise WriteError(f"{os.fspath(path)!r}: no file has a NUL in its name; choose another name")
    return Path(path)


def _beside(target: Path) -> Path:
    """An empty temporary file beside a path."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise _unwritable(target, error) from error
    os.close(handle)
    return Path(name)


def _unwritable(target: Path, error: OSError) -> WriteError:
    return WriteError(f"{target}: cannot be written ({reason(error)}); choose another place")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
