"""A model for one image at a time is calibrated image by image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import convsurgeon as cs
from convsurgeon.calibration.collect import gather
from convsurgeon.calibration.dataset import images_in
from tests import nets

IMAGES = torch.randn(80, 3, 12, 12, generator=torch.Generator().manual_seed(0))
ONE = IMAGES[:1]


class OneAtATime(nets.Plain):
    """Fails on a batch."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(self.body(F.relu(self.stem(x)))))
        return self.head(x.view(1, 32, 36).mean(2))


class OneRow(nets.Plain):
    """Takes a batch for one image, and makes one row of it."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(self.body(F.relu(self.stem(x)))))
        return self.head(x.reshape(1, 32, -1).mean(2))


@pytest.mark.parametrize("kind", [OneAtATime, OneRow])
@pytest.mark.parametrize("given", [IMAGES, [IMAGES[:50], IMAGES[50:]]], ids=["tensor", "batches"])
def test_it_is_fitted_image_by_image(kind: type[nets.Plain], given: object) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    data = gather(cs.capture(model, ONE), given, seed=0, progress=False)
    assert data is not None
    assert {images_in(batch) for batch in (*data.fitted, *data.held_back)} == {1}
    assert torch.equal(torch.cat([batch.args[0] for batch in (*data.fitted, *data.held_back)]), IMAGES)
    result = cs.convert(
        model,
        ONE,
        forms=[cs.DepthwiseSeparable(rank=1)],
        calibration=given,
        progress=False,
        policy=cs.select.named("body"),
    )
    assert set(result.changes) == {"body"}
    done = result.report.reconstruction
    assert done.images == 64
    assert done.error_after < 0.8 * done.error_before


def test_what_takes_batches_is_fed_batches() -> None:
    data = gather(cs.capture(nets.Plain().eval(), ONE), IMAGES, seed=0, progress=False)
    assert data is not None
    assert images_in(data.fitted[0]) > 1


def test_images_that_the_model_does_not_take_are_refused_in_a_line() -> None:
    class Square(nets.Plain):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.down(self.body(self.stem(x))).reshape(-1, 32, 36).mean(2))

    message = r"calibration: Square does not run on an image of shape 1x3x10x10: RuntimeError: .*; pass images"
    with pytest.raises(cs.errors.CalibrationError, match=message):
        cs.convert(Square(), ONE, calibration=torch.randn(80, 3, 10, 10))
