"""Subnormal weights are told of, and files are timed as if they were zeros."""

from __future__ import annotations

import pytest
import torch

import convsurgeon as cs
from convsurgeon.graph.subnormal import note_on_subnormals
from convsurgeon.timing import interleaved
from tests import nets


def test_subnormal_weights_are_said_before_and_after() -> None:
    model = nets.Plain().eval()
    assert note_on_subnormals(model) == ()
    with torch.no_grad():
        model.body.weight.mul_(1e-40)
    before = model.body.weight.clone()
    with pytest.warns(UserWarning, match=r"subnormal.*body\.weight"):
        result = cs.convert(model, torch.randn(1, 3, 12, 12), calibration=False, progress=False)
    assert any("body.weight" in note for note in result.report.notes)
    assert torch.equal(model.body.weight, before)


@pytest.mark.parametrize("mine", [False, True])
def test_timing_leaves_the_threads_mode_as_it_was(mine: bool) -> None:
    if not torch.set_flush_denormal(mine):
        pytest.skip("this processor has no such mode")
    tiny = torch.full((), 1e-45)
    with interleaved._subnormal_as_zero():
        assert not tiny * 1.0 > 0
    assert bool(tiny * 1.0 > 0) != mine
    torch.set_flush_denormal(False)
