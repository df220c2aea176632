"""A conversion leaves other programs their cores, and torch its threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import convsurgeon as cs
from convsurgeon.base.errors import CaptureError
from convsurgeon.onnxnet.measuring import clock
from convsurgeon.runtime.threads import only_free_cores
from tests import nets

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Counted(nets.Plain):
    """A network that keeps how many threads its forward passes had."""

    seen: list[int]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Counted.seen.append(torch.get_num_threads())
        return super().forward(x)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(("busy", "left"), [(0.0, 4), (0.1, 4), (0.5, 2), (1.0, 1)])
def test_as_many_threads_are_left_as_cores_are_free(busy: float, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "busy_share", lambda _threads: busy)
    with only_free_cores():
        assert torch.get_num_threads() == left
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_a_conversion_leaves_other_programs_their_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "busy_share", lambda _threads: 0.5)
    Counted.seen = []
    cs.convert(Counted().eval(), X, forms=[cs.DepthwiseSeparable(rank=1)], progress=False)
    assert set(Counted.seen) == {2}
    assert torch.get_num_threads() == 4
    with pytest.raises(CaptureError):
        cs.convert(Counted().eval(), X[:, :1], progress=False)
    assert torch.get_num_threads() == 4
