"""Metrics of outputs: what they say of linear networks, where no gradient comes, and what is left untouched."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.calibration.collect import read
from convsurgeon.calibration.dataset import Calibration, first_batches
from convsurgeon.fit import sensitivity
from convsurgeon.fit.known import Known
from convsurgeon.fit.samples import cross_moment, squares
from convsurgeon.graph.capture import capture
from convsurgeon.graph.output_error import relative_error, scales
from convsurgeon.graph.outputs import outputs
from convsurgeon.planning.candidates import candidates, kernels_of, plan_captured
from convsurgeon.search.scores import score_by_data
from tests.growing import convert_growing


class Linear(nn.Module):
    """A conv that gives one pixel, and a linear map of it: the derivative is the map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4)
        self.head = nn.Linear(5, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


class Blocked(Linear):
    """The same, its derivative cut off."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


def _data(count: int = 600) -> Calibration:
    images = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    return read(images, cs.Example.of(images[:1]))


def test_a_linear_head_gives_its_gram_matrix() -> None:
    torch.manual_seed(0)
    model = Linear().eval()
    data = _data()
    found = sensitivity.gradient_moments(model, ["conv"], data.fitted, seed=0)["conv"]
    weight = model.head.weight.detach().double()
    ((scale,),) = scales([outputs(model, batch) for batch in first_batches(data.fitted, 16)])
    wanted = weight.T @ (scale.inverse[:, None] * weight) / len(weight)
    assert float((found - wanted).norm() / wanted.norm()) < 0.25  # 200 random projections
    mixed = sensitivity.mixed(found)
    assert float(mixed.diagonal().mean()) == pytest.approx(1 + sensitivity.SHARE)
    assert torch.linalg.eigvalsh(mixed)[0] > 0.9 * sensitivity.SHARE


def test_gradients_flags_and_buffers_are_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 2))
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    data = _data(80)
    found = sensitivity.gradient_moments(model, ["0", "3"], data.fitted, seed=0)
    assert found["0"].any()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model[0].weight.requires_grad
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_where_no_gradient_comes_all_outputs_count_alike() -> None:
    model = Blocked().eval()
    data = _data(80)
    with pytest.warns(UserWarning, match="no gradients .* all outputs count alike"):
        found = sensitivity.gradient_moments(model, ["conv"], data.fitted, seed=0)
    assert torch.equal(sensitivity.mixed(found["conv"]), torch.eye(5, dtype=torch.float64))


@pytest.mark.filterwarnings("error")
def test_bytes_that_are_scaled_in_the_graph_count_as_their_floats_do() -> None:
    class Scaled(nn.Module):
        def __init__(self, linear: Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.float() / 255)

    torch.manual_seed(0)
    linear = Linear().eval()
    images = torch.randint(256, (200, 3, 4, 4), dtype=torch.uint8)
    given = sensitivity.gradient_moments(Scaled(linear), ["linear.conv"], [cs.Example.of(images)], seed=0)
    wanted = sensitivity.gradient_moments(linear, ["conv"], [cs.Example.of(images.float() / 255)], seed=0)
    torch.testing.assert_close(given["linear.conv"], wanted["conv"])
    assert float(given["linear.conv"].diagonal().min()) > 0


@pytest.mark.parametrize("width", [7, 384, 900])
def test_a_triangle_of_blocks_is_the_whole_moment(width: int) -> None:
    values = torch.randn(500, width)
    center = torch.randn(width)
    expected = cross_moment(values - center, values, center)
    torch.testing.assert_close(squares(values, center).div_(len(values)), expected, rtol=1e-5, atol=1e-5)


def test_appraisal_predicts_what_a_linear_network_loses() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.Conv2d(8, 4, 1)).eval()
    images = torch.randn(200, 6, 9, 9)
    seen = capture(model, images[:1])
    forms: list[cs.Form] = [cs.DepthwiseSeparable(rank=rank) for rank in (1, 2, 4)]
    forms += [cs.CP(rank=4), cs.Blueprint(rank=2)]
    base = plan_captured(seen, forms, cs.select.everything(), allow_growth=True)
    options = candidates(base, kernels_of(seen), forms, allow_growth=True)
    batches = read(images, seen.example).fitted
    known = Known(sensitivity.gradient_moments(model, options, batches, 0))
    scores = score_by_data(model, options, batches, known, seed=0, progress=False)
    assert set(scores) == {("0", form.label) for form in forms}
    falling = [scores["0", form.label] for form in forms[:3]]
    assert falling == sorted(falling, reverse=True)
    for form in forms:
        result = convert_growing(model, images[:1], forms=[form], policy=cs.select.everything(),
                            calibration=images, progress=False)  # fmt: skip
        with torch.no_grad():
            wanted = model(images)
            wrong = relative_error([result.model(images)], [wanted], scales([[wanted]]))
        assert scores["0", form.label] == pytest.approx(float(wrong), rel=0.35)


class Flat(nn.Sequential):
    """Takes images of one size."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)
        return out.reshape(len(x), 3, 64, 64)


@pytest.mark.parametrize(("kind", "side"), [(nn.Sequential, 32), (Flat, 64)])
def test_windows_stand_for_images_that_are_too_large_where_the_network_takes_them(
    kind: type[nn.Sequential], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = kind(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)).eval()
    batches = [cs.Example.of(torch.randn(16, 2, 64, 64))]
    whole = sensitivity.gradient_moments(model, ["0"], batches, 0)["0"]
    monkeypatch.setattr(sensitivity, "MOST_BYTES", 60_000)  # an image is 32,768, what comes of the first conv 65,536
    monkeypatch.setattr(sensitivity, "_BYTES", 1)
    seen: list[list[int]] = []
    honest = sensitivity._backward

    def backward(model: nn.Module, part: cs.Example, *rest: Any) -> None:
        seen.append(list(part.tensors()[0].shape[2:]))
        honest(model, part, *rest)

    monkeypatch.setattr(sensitivity, "_backward", backward)
    found = sensitivity.gradient_moments(model, ["0"], batches, 0)["0"]
    assert seen == [[side, side]] * 16
    assert float((found - whole).norm() / whole.norm()) < 0.2


class InPairs(Linear):
    """Takes an even number of images."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) % 2:
            raise ValueError("an even number, please")
        out: Tensor = super().forward(x)
        return out


@pytest.mark.parametrize(("kind", "memory", "count"), [(Linear, 1, 1), (Linear, 1 << 30, 4), (InPairs, 1, 4)])
def test_a_backward_pass_takes_what_fits_or_all_where_it_must(
    kind: type[nn.Module], memory: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "_BYTES", memory)
    batch = cs.Example.of(torch.zeros(4, 3, 4, 4))
    assert min(4, sensitivity.images_at_once(kind().eval(), batch)) == count


def test_what_is_counted_of_one_image_is_let_go() -> None:
    """A node's own output that it saves would keep the node alive, and with it all that stands before."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Conv2d(2, 1, 3)).eval()
    made: list[weakref.ref[Tensor]] = []
    model[1].register_forward_hook(lambda _module, _args, out: made.append(weakref.ref(out)))
    sensitivity.images_at_once(model, cs.Example.of(torch.randn(2, 1, 8, 8)))
    assert [one() for one in made] == [None]
