"""Progress, all of it made in one place: bars in a terminal, plain lines in notebooks and logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, Self, cast

from tqdm import tqdm

from convsurgeon.base import processes

_EVERY_S = (5.0, 60.0)
"""Seconds after which the second line of a stage is written, and the longest wait; it doubles from line to line."""


class Bar(Protocol):
    """The progress of one stage: iterated over, or updated by hand inside a `with` block."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...
    def update(self, n: float | None = 1) -> Any:
        """Count so many more."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> Any:
        """Tell what was found last."""


def bar(
    items: Iterable[Any] | None = None, *, total: int | None = None, desc: str, unit: str = "it", show: bool = True,
    delay: float = 0.0,
) -> Bar:  # fmt: skip
    """Return a progress bar, over `items` or over `total` updates by hand, that appears after `delay` seconds.

    `desc` names the stage, for example "fitting". `show=False` hides it, and so does every process but the first.
    """
    hidden = not show or processes.rank() > 0 or sys.stderr is None  # as with pythonw, or in a service
    if not hidden and not sys.stderr.isatty():
        return _Lines(items, total, desc, unit)
    made: Any = tqdm(items, total=total, desc=desc, unit=unit, delay=delay, leave=delay == 0.0, disable=hidden)
    return cast(Bar, made)


def say(text: str, *, show: bool) -> None:
    """Write one line about what goes on."""
    if show and processes.rank() == 0 and sys.stderr is not None:
        print(f"convsurgeon: {text}", file=sys.stderr, flush=True)


class _Lines:
    """A line when a stage begins, and at growing intervals how far it is."""

    def __init__(self, items: Iterable[Any] | None, total: int | None, desc: str, unit: str) -> None:
        self._items, self._desc, self._unit = items, desc, unit
        self._total = len(items) if total is None and hasattr(items, "__len__") else total  # type: ignore[arg-type]
        self._done, self._found = 0.0, ""
        self._began = self._told = time.monotonic()
        self._wait = _EVERY_S[0]
        plural = "" if self._total == 1 else "s"
        say(f"{desc}{'' if self._total is None else f', {self._total} {unit}{plural}'}", show=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        for item in self._items or ():
            yield item
            self.update()

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        self._found = s

    def update(self, n: float | None = 1) -> None:
        self._done += n or 0
        now = time.monotonic()
        if now - self._told < self._wait:
            return
        self._told, self._wait = now, min(2 * self._wait, _EVERY_S[1])
        passed = now - self._began
        left = (
            f", about {passed * (self._total / self._done - 1):.0f} s of this left"
            if self._total and self._done
            else ""
        )
        found = f"; {self._found}" if self._found else ""
        share = f"{self._done:g}{'' if self._total is None else f' of {self._total}'}"
        say(f"{self._desc} {share}, {passed:.0f} s{left}{found}", show=True)
