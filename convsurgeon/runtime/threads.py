"""Torch's threads on a machine that does other things."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def only_free_cores() -> Iterator[None]:
    """Let torch use no more threads inside the block than there are free cores.

    Its threads wait for each other in a loop. Where one of them has lost its core to another program, the others burn
    theirs: a fit of 16 processor seconds took 68, and twice as long (two cores, load 10).
    """
    from convsurgeon.onnxnet.measuring.clock import busy_share  # loads onnxruntime

    before = torch.get_num_threads()
    free = round(before * (1 - busy_share(before))) if before > 1 else before
    torch.set_num_threads(max(1, free))
    try:
        yield
    finally:
        torch.set_num_threads(before)
