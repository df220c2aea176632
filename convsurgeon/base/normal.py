"""The state of the process that every public function runs in, whatever its caller's: as in a fresh thread.

Default dtype and device stay the caller's, since the model's own forward may rely on them; so every tensor that is made
in this package says its own (`tests/test_process.py` reads the calls).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast

import torch

from convsurgeon.base.errors import ResourceError

F = TypeVar("F", bound=Callable[..., Any])
_LOCK = threading.RLock()
_DEVICES = ("cuda", "mps", "xpu")


@contextmanager
def normal_mode() -> Iterator[None]:
    """Leave inference mode and autocast and allow gradients inside the block; other threads wait to enter theirs.

    `torch.fx` and hooks replace parts of `nn.Module` for the whole process, which two conversions at once would mix up.
    """
    with _LOCK, torch.inference_mode(mode=False), torch.enable_grad(), ExitStack() as stack:
        for device in ("cpu", *filter(torch.is_autocast_enabled, _DEVICES)):
            # without the cache, or autocast in a model's forward would remember casts of what is run on here
            stack.enter_context(torch.autocast(device, enabled=False, cache_enabled=False))
        yield


def in_normal_mode(function: F) -> F:
    """Have a public function run in `normal_mode`."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with normal_mode():
            try:
                return function(*args, **kwargs)
            except (MemoryError, OSError, RuntimeError) as error:
                if refused := _refused(error):
                    raise ResourceError(refused) from error
                raise

    return cast(F, run)


def _refused(error: Exception) -> str:
    """Return what the system refuses and what to do, in words; empty for other errors."""
    where = "".join(f" at {note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
        return f"memory: there is not enough{where}; pass fewer or smaller images (limit=, size=, --limit)"
    if isinstance(error, BlockingIOError) or "can't start new thread" in str(error):
        return "processes: the system starts no more processes or threads; end some, or raise the limit (ulimit -u)"
    return ""
