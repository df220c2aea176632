"""All sites together: what moves, what does not, and that it is never worse."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.calibration.collect import read
from convsurgeon.calibration.dataset import Calibration, first_images, images_in
from convsurgeon.distill import distiller, joint
from convsurgeon.distill.joint import fit_jointly
from convsurgeon.distill.loss import OutputJudge
from convsurgeon.distill.soap import Soap
from convsurgeon.fit import sensitivity
from convsurgeon.graph.capture import capture
from convsurgeon.planning.surgery import operate

FORMS = [cs.CP(rank=8)]


class Residual(nn.Module):
    """A stem, a residual block, a conv that is not touched, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.one, self.norm1 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.two, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.kept = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.norm2(self.two(torch.relu(self.norm1(self.one(x))))))
        out: Tensor = self.head(torch.relu(self.kept(x)).mean((2, 3)))
        return out


class Branching(Residual):
    """What cannot be traced: the forward looks at values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) < 1e9 else -x)


class Shared(nn.Module):
    """One conv called twice, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.conv(self.stem(x)))
        return {"map": self.conv(x), "mean": x.mean((2, 3))}


class Blind(Branching):
    """No gradient comes through, and nothing can be traced around that."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


def _images(count: int, size: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return nn.functional.avg_pool2d(torch.randn(count, 3, size + 2, size + 2, generator=generator), 3, 1) * 3


@dataclass(frozen=True)
class Made:
    """A model and what weights alone make of it; its stem and `kept` stay."""

    original: nn.Module
    model: nn.Module
    plan: cs.Plan

    def state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def _made(kind: type[nn.Module]) -> Made:
    torch.manual_seed(0)
    model = kind().eval()
    left = [name for name in ("stem", "kept") if hasattr(model, name)]
    plan = cs.plan(model, _images(1), forms=FORMS, policy=~cs.select.named(*left))
    return Made(model, *operate(model, plan, _images(1)))


def _fitted(made: Made, data: Calibration, seed: int = 0) -> tuple[float, float]:
    judge = OutputJudge(made.original, data.held_back)
    before = judge.score(made.model).error
    seen = capture(made.original, _images(1))
    fit_jointly(seen, made.model, made.plan, data.fitted, judge.score, seed, progress=False)
    return before, judge.score(made.model).error


def _data(count: int = 80) -> Calibration:
    return read(_images(count), cs.Example.of(_images(1)))


@pytest.mark.usefixtures("all_epochs")
@pytest.mark.parametrize("size", [12, 24])
@pytest.mark.parametrize(("allowed", "steps"), [(1000, 32), (20.5, 20), (0, joint.QUARTERS)])
def test_a_large_network_gets_fewer_steps(
    size: int, allowed: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four epochs, or what may be computed: by the size of the images, not the example's."""
    seen = capture(Residual().eval(), _images(1))
    batches = read(_images(80, size), cs.Example.of(_images(1, size))).fitted
    sample = first_images(batches[0], 8)
    monkeypatch.setattr(joint, "_MACS", allowed * 4 * seen.cost.macs * (size / 12) ** 2 * 8)
    assert joint._steps(seen, batches, sample) == steps


@pytest.mark.parametrize("kind", [Residual, Branching, Shared])
def test_it_lowers_the_error_on_images_that_it_did_not_see(kind: type[nn.Module]) -> None:
    made = _made(kind)
    before, after = _fitted(made, _data())
    assert after < 0.99 * before


def test_only_rewritten_convs_and_the_norms_behind_them_move() -> None:
    made = _made(Residual)
    start = made.state()
    original = {name: value.clone() for name, value in made.original.state_dict().items()}
    made.model.one.requires_grad_(False)  # type: ignore[union-attr]
    _fitted(made, _data())
    moved = {name for name, value in made.model.state_dict().items() if not torch.equal(value, start[name])}
    assert {name.split(".")[0] for name in moved} == {"one", "two", "norm1", "norm2"}
    assert not any("running" in name or "num_batches" in name for name in moved)
    assert all(torch.equal(value, original[name]) for name, value in made.original.state_dict().items())
    flags = {name: parameter.requires_grad for name, parameter in made.model.named_parameters()}
    assert not any(flag for name, flag in flags.items() if name.startswith("one."))
    assert all(flag for name, flag in flags.items() if not name.startswith("one."))
    assert all(parameter.grad is None for parameter in made.model.parameters())


def test_a_seed_gives_the_same_weights() -> None:
    states = []
    for seed in (0, 0, 1):
        made = _made(Residual)
        _fitted(made, _data(), seed)
        states.append(torch.cat([value.flatten() for value in made.model.state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("kind", [Residual, Branching, Shared])
def test_images_one_by_one_give_the_gradient_of_their_batch(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backward pass keeps the activations of all that it takes at once."""
    found: list[list[Tensor]] = []
    most: list[int] = []

    class Still(Soap):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            found[-1] += [parameter.grad.clone() for group in self.param_groups for parameter in group["params"]]

    monkeypatch.setattr(distiller, "Soap", Still)
    honest = joint._SiteLoss.__call__

    def loss(own: joint._SiteLoss, batch: cs.Example) -> Tensor:
        most[-1] = max(most[-1], images_in(batch))
        return honest(own, batch)

    monkeypatch.setattr(joint._SiteLoss, "__call__", loss)
    for memory in (1 << 30, 1):
        monkeypatch.setattr(sensitivity, "_BYTES", memory)
        found.append([])
        most.append(0)
        _fitted(_made(kind), _data())
    assert most == [8, 1]
    assert len(found[0]) == len(found[1]) > 0
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))


def test_what_does_not_help_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "RATE", 1e4)
    monkeypatch.setattr(distiller, "SLOWER", 1.0)
    made = _made(Residual)
    start = made.state()
    before, after = _fitted(made, _data())
    assert after == before
    assert all(torch.equal(value, start[name]) for name, value in made.model.state_dict().items())


def test_batches_of_several_sizes_and_of_one_image() -> None:
    made = _made(Residual)
    batches = [_images(5), _images(1, 9), _images(7, 16), _images(3), _images(70, 8)]
    before, after = _fitted(made, read(batches, cs.Example.of(_images(1))))
    assert after < before


def test_one_image_is_enough_to_run() -> None:
    made = _made(Residual)
    one = cs.Example.of(_images(1))
    before, after = _fitted(made, Calibration((one,), (one,)))
    assert after <= before


def test_a_forward_without_gradients_is_left_as_it_was() -> None:
    made = _made(Blind)
    with pytest.warns(UserWarning, match="calibration: no joint fit .*grad"):
        before, after = _fitted(made, _data())
    assert after == before


@pytest.mark.parametrize("near", [0.0, 1.0])
def test_the_report_says_what_it_bought(near: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsurgeon.distill.reconstruct.NEAR", near)
    torch.manual_seed(0)
    model = Residual().eval()
    result = cs.convert(model, _images(1), forms=FORMS, calibration=_images(80), progress=False)
    if near == 1.0:  # nothing that would show
        assert "fitted together" not in str(result.report)
        return
    steps = {what: error for what, error, _ in result.report.reconstruction.steps}
    assert steps["fitted together"] < steps["fitted to activations"]
    assert "fitted together" in str(result.report)
