"""Two networks in lockstep: what is held for all images at once is not held in memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from convsurgeon.fit.lockstep import on_disk, page_out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_valueson_disk_are_not_resident() -> None:
    """Mapped pages that were written count as memory until they are given back: 20 GB of a U-Net at 1024x1024."""
    values = torch.randn(4, 8, 512, 512).contiguous(memory_format=torch.channels_last)
    before = _resident_bytes()
    opened = len(list(Path("/proc/self/fd").iterdir()))
    kept = [on_disk(values) for _ in range(8)]
    assert len(list(Path("/proc/self/fd").iterdir())) == opened  # there may be thousands of values
    assert _resident_bytes() - before < 2 * values.nbytes
    for one in kept:
        assert torch.equal(one, values)
        assert one.stride() == values.stride()
        page_out({"read": [one]})
    assert _resident_bytes() - before < 2 * values.nbytes


@pytest.mark.parametrize("shape", [(1 << 19, 2), (3, 1 << 19)])
def test_any_layout_goes_to_disk(shape: tuple[int, int]) -> None:
    values = torch.randn(shape)
    assert torch.equal(on_disk([values[:, ::2]])[0], values[:, ::2])
    wide = values[:, :1].expand(-1, 4)
    assert torch.equal(on_disk(wide), wide)


def _resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
