"""Batches laid out as they run fastest are the same images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convsurgeon.calibration import layout
from convsurgeon.calibration.collect import gather
from convsurgeon.calibration.dataset import Calibration, join_batches
from convsurgeon.graph.capture import capture
from convsurgeon.graph.example import Example


class Net(nn.Module):
    """A conv whose map is flattened in a way that works in either layout, in one only, or for eight images only."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.head = kind, nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.kind == "eight":
            x = x.reshape(8, -1)
        return self.head(x.view(len(x), -1) if self.kind == "view" else x.flatten(1))


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(
    ("kind", "sizes", "last"),
    [("any", [3, 3, 2, 3, 2], True), ("view", [3, 3, 2, 3, 2], False), ("eight", [8, 8], True)],
)
def test_they_are_the_same_images(kind: str, sizes: list[int], last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    other = 12 if kind == "eight" else 5
    data = Calibration((Example.of(_images(8)), Example.of(_images(other))), (Example.of(_images(8)),))
    seen = capture(Net(kind).eval(), _images(8))
    monkeypatch.setattr(layout, "BATCH_BYTES", 3.5 * seen.cost.peak_activation_bytes / 8)
    found = layout.lay_out(seen, data)
    tensors = [batch.tensors()[0] for batch in found.fitted]
    assert [len(one) for one in tensors] == sizes
    given = torch.cat([batch.tensors()[0] for batch in data.fitted])
    assert torch.equal(torch.cat(tensors), given[: 16 if kind == "eight" else None])
    assert all(one.is_contiguous(memory_format=torch.channels_last) == last for one in tensors)
    assert sum(len(batch.tensors()[0]) for batch in found.held_back) == 8


@pytest.mark.parametrize(("times", "most"), [(3.5, 3), (0.5, 1)])
def test_a_batch_that_is_a_whole_data_set_is_never_run_whole(
    times: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen images of 1024x1024 at once were 13 GB of a U-Net's activations, before any fit; two were 5.7."""
    model, run = Net("any").eval(), list[int]()
    seen = capture(model, _images(1))
    monkeypatch.setattr(layout, "BATCH_BYTES", times * seen.cost.peak_activation_bytes)
    model.head.register_forward_pre_hook(lambda _, args: run.append(len(args[0])))
    data = gather(seen, _images(40), seed=0, progress=False)
    assert data is not None
    assert max(run) == most
    assert torch.equal(torch.cat([one.tensors()[0] for one in (*data.fitted, *data.held_back)]), _images(40))


def test_convs_of_grey_images_run_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1)).eval()
    images = torch.randn(6, 1, 16, 16)
    seen = capture(model, images[:1])
    batch = Example.of(images)
    data = layout.lay_out(seen, Calibration((batch,), (batch,)))
    for batch in data.fitted:
        assert batch.run(model).is_contiguous(memory_format=torch.channels_last)


def test_joined_batches_are_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = capture(Net("any").eval(), _images(1))
    monkeypatch.setattr(layout, "BATCH_BYTES", 2.5 * seen.cost.peak_activation_bytes)
    batches = Example.of(_images(40)), Example.of(_images(30))
    data = layout.lay_out(seen, Calibration(batches, (Example.of(_images(5)),)))
    assert {len(one.tensors()[0]) for one in data.fitted} == {2}
    assert data.together == 40
    joined = join_batches(data.fitted, data.together)
    assert [len(one.tensors()[0]) for one in joined] == [40, 30]
    assert torch.equal(torch.cat([one.tensors()[0] for one in joined]), torch.cat([_images(40), _images(30)]))


def test_batches_with_a_table_of_their_own_are_not_joined() -> None:
    table = torch.randn(7, 2)
    one, again, two = (Example.of((_images(3), each)) for each in (table, table, table + 1))
    assert [len(batch.tensors()[0]) for batch in join_batches([one, again, two], 100)] == [3, 3, 3]
