"""Another thread may use any model while a capture runs; captures in several threads do not disturb one another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.graph.capture import Capture
from tests import hostile, nets

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
CAPTURES = 12


class Rooted(nn.Module):
    """Reads a parameter and a number in its own forward, which a trace replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 4, 3), nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.ReLU()(self.conv(x)) * self.scale


def _forwards(model: nn.Module, stop: threading.Event) -> tuple[int, list[str]]:
    """Run a model until told to stop; return how often, and what went wrong."""
    wrong, count = [], 0
    with torch.no_grad():
        wanted = model(X)
        while not stop.is_set() or count < 5:
            count += 1
            try:
                found = model(X)
                if type(found) is not Tensor or not torch.equal(found, wanted):
                    wrong.append(f"another result: {type(found)}")
            except Exception as error:  # whatever a replaced call raises
                wrong.append(repr(error))
    return count, wrong


def _beside(model: nn.Module, work: Callable[[], object]) -> tuple[int, list[str]]:
    """Do some work while another thread runs a model."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(_forwards, model, stop)
        try:
            work()
        finally:
            stop.set()
        return other.result()


def test_forwards_of_another_model_work_while_captures_run() -> None:
    model, other = nets.Plain().eval(), Rooted().eval()
    wanted = cs.capture(model, X)
    found: list[Capture] = []
    count, wrong = _beside(other, lambda: found.extend(cs.capture(model, X) for _ in range(CAPTURES)))
    assert not wrong, f"{len(wrong)} of {count}: {wrong[0]}"
    assert all(seen.sites == wanted.sites and seen.cost == wanted.cost for seen in found)


def test_the_model_itself_may_be_used_meanwhile() -> None:
    model = Rooted().eval()
    count, wrong = _beside(model, lambda: [cs.capture(model, X) for _ in range(CAPTURES)])
    assert not wrong, f"{len(wrong)} of {count}: {wrong[0]}"


def test_captures_in_several_threads() -> None:
    before = nn.Module.__call__, nn.Module.__getattr__
    models = [nets.Plain().eval(), hostile.MakesModules().eval(), nets.Branching().eval(), nets.Shared().eval()]
    wanted = [cs.capture(model, X).sites for model in models]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda model: cs.capture(model, X).sites, models * 4))
    assert found == wanted * 4
    assert (nn.Module.__call__, nn.Module.__getattr__) == before
