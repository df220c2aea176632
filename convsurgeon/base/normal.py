"""The state of the process that every public function runs in, whatever its caller's: as in a fresh thread.

Default dtype and device stay the caller's, since the model's own forward may rely on them; so every tensor that is made
in this package says its own (`tests/test_process.py` reads the calls).
"""

from __future__ import annotations

import functools
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast

import torch

from convsurgeon.base.errors import ConvSurgeonError, ResourceError

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
            except (MemoryError, OSError, RuntimeError, ConvSurgeonError) as error:
                cause: BaseException | None = error
                while cause is not None and not isinstance(cause, ResourceError):
                    check_resources(cause)
                    cause = cause.__cause__
                raise

    return cast(F, run)


_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory", "bad_alloc", "Failed to allocate memory")
_PROCESSES = ("can't start new thread", "pthread_create failed")


def check_resources(error: BaseException) -> None:
    """Raise a ResourceError if an error says that the system refuses memory, processes, threads or files."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in text for part in _MEMORY):
        raise ResourceError(
            f"memory: not enough{_layer(error)}; pass fewer or smaller images (limit=, size=, --limit)"
        ) from error
    if isinstance(error, BlockingIOError) or any(part in text for part in _PROCESSES):
        raise ResourceError(
            "processes: no more processes or threads are started; end some, or raise ulimit -u"
        ) from error
    if "Too many open files" in text:
        raise ResourceError("files: the system opens no more; close some, or raise the limit (ulimit -n)") from error


def _layer(error: BaseException) -> str:
    """Return the layer that was run, or was worked on, when an error was raised."""
    named = list(getattr(error, "__notes__", ()))
    frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    run = [str(found) for found in frames if isinstance(found, torch.nn.Module) and not found._modules]
    return "".join(f" at {part}" for part in named[:1] or run[-1:])
