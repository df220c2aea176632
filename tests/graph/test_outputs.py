"""Networks whose output picks among values cannot be told apart by it, which is said before anything is tried."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import check_output_sizes, pair_outputs, part_before
from tests import nets

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(96, 3, 12, 12, generator=torch.Generator().manual_seed(1))
REFUSED = (
    r"^calibration: Picks gives an output of shape [\dx]+ for one image, [\dx]+ for another of its size, .*; "
    r"convert model.backbone by itself and put it back, or pass calibration=False$"
)


class Picks(nets.Plain):
    """Convs run on the places of a map that are above its mean; `backbone` is what is before."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(self.stem, nn.ReLU(), self.body, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        found = self.backbone(x).flatten(2)
        places = found.mean((0, 1))
        picked: Tensor = self.down(found[:, :, None, (places > places.mean()).nonzero()[:, 0]])
        return picked


def picks() -> nn.Module:
    torch.manual_seed(0)
    return Picks().eval()


@pytest.mark.parametrize(
    "asked",
    [{}, {"calibration": IMAGES}, {"goal": cs.Budget(macs=0.5)}, {"forms": [cs.CP(rank=4)]}],
    ids=lambda asked: " ".join(asked) or "default",
)
def test_what_picks_is_refused_before_anything_is_measured(asked: dict[str, object]) -> None:
    with pytest.raises(cs.errors.CalibrationError, match=REFUSED):
        cs.convert(picks(), X, progress=False, **asked)  # type: ignore[arg-type]


def test_so_are_its_sweep_and_its_recovery() -> None:
    model = picks()
    with pytest.raises(cs.errors.CalibrationError, match=REFUSED):
        cs.sweep(model, X, calibration=IMAGES, progress=False)
    result = cs.convert(model, X, forms=[cs.DepthwiseSeparable(rank=1)], calibration=False)
    assert len(result.changes) == 2
    with pytest.raises(cs.errors.CalibrationError, match=r"^output: .*\d+ .*\d+"):
        cs.recover(result, IMAGES, progress=False)


def test_what_it_says_to_do_instead_works() -> None:
    model = picks()
    forms = [cs.DepthwiseSeparable(rank=2)]
    result = cs.convert(model.backbone, X, forms=forms, calibration=IMAGES, progress=False)  # type: ignore[arg-type]
    assert len(result.changes) == 1
    before = model(X)
    model.backbone = result.model
    assert not torch.equal(model(X)[..., :5], before[..., :5])


@pytest.mark.parametrize("name", nets.CONVERTIBLE)
def test_all_others_give_as_much_for_every_image(name: str) -> None:
    check_output_sizes(nets.CONVERTIBLE[name]().eval(), Example.of(torch.randn(2, 3, 12, 12)))


def test_what_does_not_run_on_another_image_is_let_be() -> None:
    class Strict(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not torch.equal(x, X):
                raise ValueError("another image")
            return x

    check_output_sizes(Strict(), Example.of(X))


def test_outputs_stand_side_by_side() -> None:
    one, two = torch.ones(2, 3), torch.zeros(2, 3)
    assert pair_outputs([one], [two]) == [(one, two)]
    with pytest.raises(cs.errors.CalibrationError, match="of shape 2x3, 2x3 from the original, 2x3 from the converted"):
        pair_outputs([one, one], [two])
    with pytest.raises(cs.errors.CalibrationError, match="of shape nothing from the original, one number from"):
        pair_outputs([], [torch.ones(())])


def test_the_part_before_is_named_where_its_name_is_usual() -> None:
    assert part_before(picks()) == "model.backbone"
    assert part_before(nn.Sequential(nn.ReLU())) == "the part before it"
