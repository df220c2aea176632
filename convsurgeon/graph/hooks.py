"""Looking at what modules read, for as long as a block of code runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def reading(modules: Iterable[nn.Module], look: Callable[[nn.Module, tuple[Any, ...]], None]) -> Iterator[None]:
    """Calls `look` with a module and its positional arguments whenever one of the modules is run.

    Args:
        modules: each as often as it stands there.
        look: gives nothing, so nothing is changed.
    """
    handles = [module.register_forward_pre_hook(look) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
