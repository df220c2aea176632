"""Progress bars, all made in one place."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from convsurgeon.base import processes


def bar(
    items: Iterable[Any] | None = None, *, total: int | None = None, desc: str, unit: str = "it", show: bool = True,
    delay: float = 0.0,
) -> tqdm[Any]:  # fmt: skip
    """Return a progress bar, over `items` or over `total` updates by hand.

    Args:
        items: what is iterated over, if the bar is used in a loop.
        total: number of updates, if `items` does not say it.
        desc: the stage, for example "fitting".
        unit: of what is counted.
        show: False hides it; so do a stream that is not a terminal and every process but the first.
        delay: seconds before it appears.
    """
    hidden = None if show and processes.rank() == 0 and sys.stderr is not None else True  # None: pythonw, a service
    return tqdm(items, total=total, desc=desc, unit=unit, delay=delay, leave=delay == 0.0, disable=hidden)
