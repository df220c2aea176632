"""Ctrl-C on the command line: one line and exit code 130, whatever was being done. Imports nothing that takes time.

Python turns the signal into an exception at whatever line it is. Inside an import of compiled code, a callback from it
or a destructor that exception becomes another one, or is printed and lost: so what was asked is also noted.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

EXIT = 130
"""128 + SIGINT, as shells have it."""

_AGAIN_S = 0.05
_asked = False


def asked() -> bool:
    """Whether Ctrl-C was pressed since `listen`."""
    return _asked


def leave_at_once() -> None:
    """From here on Ctrl-C ends the process where it stands: nothing is begun that would have to be cleaned up."""
    signal.signal(signal.SIGINT, _leave)


def listen() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, and a second one ends the process."""
    global _asked
    _asked = False
    sys.unraisablehook = _once_more
    signal.signal(signal.SIGINT, _note)


def ignore() -> None:
    """From here on Ctrl-C does nothing: all is done, and Python is about to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def leave() -> NoReturn:
    """Ends the process with the exit code, all being told and cleared.

    Python would kill itself by the signal where it hit code made from text (dataclasses, graphs), caught or not.
    """
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(EXIT)


def tell(words: str = "") -> int:
    """Says that it was heard; gives the exit code."""
    with contextlib.suppress(OSError):  # nobody listens
        print(_line(words), file=sys.stderr, flush=True)
    return EXIT


def _line(words: str) -> str:
    return f"convsurgeon: interrupted; {words or 'nothing was written'}"


def _leave(_signal: int, _frame: FrameType | None) -> None:
    os.write(2, f"{_line('')}\n".encode())
    os._exit(EXIT)


def _note(_signal: int, _frame: FrameType | None) -> None:
    global _asked
    if _asked:
        os._exit(EXIT)
    _asked = True
    raise KeyboardInterrupt


def _once_more(told: Any) -> None:
    """A destructor swallowed the exception: raises it again a moment later, where it is heard."""
    global _asked
    if isinstance(told.exc_value, KeyboardInterrupt):
        _asked = False
        threading.Timer(_AGAIN_S, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(told)
