"""How many images there is time for; a user who allows minutes gets a result of fewer images, and is told."""

from __future__ import annotations

import math
import time
import warnings

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.calibration.collect import LIMIT
from convsurgeon.calibration.images import Images
from convsurgeon.calibration.pace import COSTLY_S, LEAST, images_in_time
from convsurgeon.graph.example import Example

_SECONDS = st.floats(1e-4, 1e5)


@given(_SECONDS, st.floats(COSTLY_S, 1e5), st.floats(1, 100))
def test_more_time_or_a_faster_network_allows_more_images(left_s: float, run_s: float, more: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = images_in_time(1.0, left_s, run_s)
        assert LEAST <= found <= images_in_time(1.0, more * left_s, run_s) <= LIMIT
        assert found <= images_in_time(1.0, left_s, run_s / more) <= LIMIT


def test_too_little_time_is_said_and_how_much_it_takes() -> None:
    with pytest.warns(match=r"minutes=0\.5: a run of the network takes 6 s here.* about 34 min"):
        assert images_in_time(0.5, 30.0, 6.0) == LEAST
    assert images_in_time(34, 34 * 60.0, 6.0) == LEAST
    assert images_in_time(0.1, 6.0, COSTLY_S / 2) == LIMIT  # images are not what takes the time


@given(st.floats(COSTLY_S, 10.0))
def test_runs_that_scatter_seldom_change_the_number(run_s: float) -> None:
    """A search goes on from an earlier one of the same images only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        near = {images_in_time(10, 600.0, run_s * factor) for factor in (1.0, 1.05, 1.1)}
    assert len(near) <= 2
    assert all(count.bit_count() == 1 for count in near)


class _Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.01 * len(x))
        return torch.relu(self.conv(x))


def test_a_slow_network_gets_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The note says how many; what the user names as a limit is no reason to use more."""
    torch.manual_seed(0)
    model, images = _Slow().eval(), torch.randn(96, 3, 8, 8)
    monkeypatch.setattr("convsurgeon.calibration.pace.COSTLY_S", 0.001)
    monkeypatch.setattr("convsurgeon.search.search.WORTH", math.inf)  # nothing is worth it: no trial
    for calibration in (images, cs.Images(images, limit=90)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on a busy machine the least may be too much
            result = cs.convert(model, images[:1], calibration=calibration, minutes=0.2, progress=False)
        (note,) = (one for one in result.report.notes if "minutes=0.2" in one)
        count = int(note.split(" images")[0].split()[-1])
        assert LEAST <= count < 96
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        few = cs.convert(model, images[:1], calibration=images[:8], minutes=0.2, progress=False)
    free = cs.convert(model, images[:1], calibration=images[:20], minutes=60, progress=False)
    assert not any("minutes" in one for result in (few, free) for one in result.report.notes)


def test_of_a_tensor_the_images_are_taken_at_even_distances() -> None:
    """It may be sorted by classes."""
    images = torch.arange(10.0)[:, None, None, None].expand(10, 3, 4, 4)
    (batch,) = Images(images, limit=5).batches(Example((images[:1],), {}))
    assert batch[:, 0, 0, 0].tolist() == [0, 2, 4, 6, 8]
