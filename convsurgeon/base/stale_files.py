"""What killed processes leave lying about, and how it is told from what living ones are at work on.

Every writer holds a lock on its own temporary file or folder, which dies with it, so nobody removes what is still
written to. Where many are made in a second, what was made a moment ago may not be locked yet and is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and leftovers stay until somebody removes them
    fcntl = None  # type: ignore[assignment]

_YOUNG_S = 1.0
_RANDOM = "[a-z0-9_]{8}"  # of tempfile


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds a lock on a file or folder, which the system releases when this process ends, however it ends.

    Gives whether nobody else holds it; where there are no locks, nobody does.
    """
    if fcntl is None:
        yield True
        return
    handle = os.open(path, os.O_RDONLY)
    mine = True
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # others: a file system without locks, where leftovers look abandoned to nobody
            mine = error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        yield mine
    finally:
        os.close(handle)


def abandoned(path: Path, young_s: float = 0.0) -> bool:
    """Whether the process that made a temporary file or folder is gone: nobody holds its lock.

    Args:
        path: of the file or folder.
        young_s: seconds after its last change in which it is nobody's to remove.
    """
    if fcntl is None:
        return False
    try:
        if young_s and time.time() - path.stat().st_mtime < young_s:
            return False
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def clear_beside(target: Path) -> None:
    """Removes the temporary files that killed writers of a file left beside it."""
    name = re.compile(re.escape(f".{target.name}.") + _RANDOM + re.escape(target.suffix))
    with contextlib.suppress(OSError):  # somebody else was faster, or may not be ours to remove
        for entry in target.parent.iterdir():
            if name.fullmatch(entry.name) and entry.is_file() and not entry.is_symlink() and abandoned(entry, _YOUNG_S):
                entry.unlink(missing_ok=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for temporary files, gone at the end; those that killed runs left behind go first."""
    for left in Path(tempfile.gettempdir()).glob("convsurgeon-*.scratch"):
        if left.is_dir() and not left.is_symlink() and _ours(left) and abandoned(left, _YOUNG_S):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="convsurgeon-", suffix=".scratch"))
    try:
        with locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ours(path: Path) -> bool:
    try:
        return not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()
    except OSError:
        return False
