"""A metric gives a number, or one for each image, of which the mean counts and the standard error is known."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convsurgeon as cs
from convsurgeon.search.metric import measure
from tests.bundle.bundles import converted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (2, 2.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (torch.tensor([[3.0]]), 3.0),
        (Decimal("1.5"), 1.5),
        ([1, 2, 6], 3.0),
    ],
)
def test_numbers_of_every_kind(given: Any, wanted: float) -> None:
    assert measure(lambda _: given, nn.Identity()) == wanted


@pytest.mark.parametrize("given", ["2", None, [], torch.ones(2, 2), [1.0, math.nan], 1j, "nan"])
def test_what_is_no_number_is_refused_by_the_metrics_name(given: Any) -> None:
    def quality(_: nn.Module) -> Any:
        return given

    with pytest.raises(cs.errors.BudgetError, match="quality"):
        measure(quality, nn.Identity())


def test_values_of_each_image_give_the_standard_error_of_the_difference() -> None:
    """Paired: what is common to both networks does not count."""
    common = torch.linspace(0, 100, 50)
    shift = torch.tensor([0.0, 2.0] * 25)

    def each(model: nn.Module) -> torch.Tensor:
        return common + 50 - shift * float(next(model.parameters()))

    one, two = nn.Linear(1, 1), nn.Linear(1, 1)
    one.weight.data[:], two.weight.data[:] = 0.0, 1.0
    within = cs.Within(5.0, metric=each).resolve(one)
    value = within.ask(two)
    assert (within.before, value) == (pytest.approx(100.0), pytest.approx(99.0))
    assert within.doubt(value) == pytest.approx(float(shift.std()) / math.sqrt(50))
    assert within.doubt(12.0) is None
    assert cs.Within("5%", metric=lambda _: 3.0).resolve(one).doubt(3.0) is None


def test_the_bundle_and_its_page_tell_it(tmp_path: Any) -> None:
    result = converted()
    images = torch.randn(20, 3, 12, 12, generator=torch.Generator().manual_seed(3))

    def each(model: nn.Module) -> torch.Tensor:
        return 100 + model(images)[:, 0]

    judged = result.judged_by(cs.Within("90%", metric=each).resolve(result.original))
    made = cs.export(judged, tmp_path / "out", pairs=0, progress=False)
    with torch.no_grad():
        apart = each(result.model) - each(result.original)
    assert made.doubts == {"model.onnx": pytest.approx(float(apart.std()) / math.sqrt(20), rel=1e-4)}
    assert "one standard error" in (tmp_path / "out" / "report.html").read_text()
    assert made.to_dict()["doubts"] == made.doubts
