"""Arguments, inputs and outputs of other kinds than most: each is right, or refused in a line that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs
from tests import nets

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def _convert(model: nn.Module, example: object = X, images: object = IMAGES, **how: Any) -> cs.Result:
    forms = [cs.DepthwiseSeparable(rank=2)]
    return cs.convert(model, example, calibration=images, progress=False, **({"forms": forms} | how))


# Inputs and outputs


class Spectrum(nn.Module):
    """Takes complex numbers, as from a scanner."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(torch.view_as_real(x)[:, 0].permute(0, 3, 1, 2))))


class Sparse(nets.Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to_sparse()


class InPairs(nets.Plain):
    """Takes two images, no more and no fewer."""

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == 2
        return super().forward(x)


def test_complex_inputs_are_images_too() -> None:
    given = torch.randn(24, 1, 12, 12, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert set(_convert(Spectrum().eval(), given[:1], given).changes) == {"second"}


@pytest.mark.filterwarnings("ignore:calibration. no gradients:UserWarning")
def test_sparse_outputs_are_judged_by_their_values() -> None:
    result = _convert(Sparse().eval())
    assert set(result.changes) == {"body", "down"}
    assert 0 < result.report.fidelity.sqnr_db < 100


def test_a_network_of_one_batch_size_keeps_its_gradients(recwarn: pytest.WarningsRecorder) -> None:
    assert set(_convert(InPairs().eval()).changes) == {"body", "down"}
    assert not [str(one.message) for one in recwarn if "gradients" in str(one.message)]


# Arguments


@pytest.fixture(scope="module")
def result() -> cs.Result:
    torch.manual_seed(0)
    return _convert(nets.Plain().eval())


@pytest.mark.parametrize(
    ("how", "named"),
    [
        *(({"goal": goal}, "goal") for goal in ("macs=0.5", 0.5, {"macs": 0.5}, cs.Within)),
        *(({"runtime": runtime, "goal": cs.Budget(latency=0.5)}, "runtime") for runtime in (4, "int8")),
        *(({"seed": seed}, "seed") for seed in (1.5, "3", None, 10**17)),
        ({"minutes": "3"}, "minutes"),
    ],
)
def test_arguments_of_another_type_are_refused(how: dict[str, Any], named: str) -> None:
    with pytest.raises(cs.ConvSurgeonError, match=named):
        _convert(nets.Plain().eval(), **({"forms": None} | how))


@pytest.mark.parametrize("seed", [10**17 - 1, -(10**17) + 1, np.int64(10**16), True])
def test_every_seed_that_is_taken_gives_gradients_and_a_joint_fit(seed: int, recwarn: pytest.WarningsRecorder) -> None:
    _convert(nets.Plain().eval(), seed=seed)
    assert not [str(one.message) for one in recwarn if "calibration" in str(one.message)]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda _: cs.recover(nets.Plain(), IMAGES), "recover.*Plain"),
        (lambda result: cs.recover(result, IMAGES, recipe={"epochs": 1}), "Recipe.*dict"),
        (lambda result: cs.recover(result, IMAGES, run=3), "run.*int"),
        (lambda _: cs.export(nets.Plain(), "out"), "export.*Plain"),
        (lambda result: cs.export(result, None), "path.*NoneType"),
        (lambda _: cs.rebuild(nets.Plain(), "plan.json"), "plan.*str"),
        (lambda result: cs.rebuild(None, result.plan), "model.*NoneType"),
        (lambda result: cs.export(result, "out", runtime=3), "runtime.*int"),
        (lambda result: cs.export(result, "out", pairs="many"), "pairs.*str"),
        (lambda result: cs.onnx.export(result, X, "a.onnx"), "model.*Result"),
        (lambda result: cs.onnx.export(result.model, X[:0], "a.onnx"), "example"),
        (lambda result: cs.onnx.export(result.model, X.to("meta"), "a.onnx"), "export.*meta"),
        (lambda _: cs.onnx.export(nets.Plain().to("meta"), X, "a.onnx"), "export.*meta"),
        (lambda _: cs.onnx.quantize(None, "a.onnx", IMAGES), "source.*NoneType"),
        (lambda _: cs.timing.compare(3, 4), "compare.*int"),
        (lambda _: cs.Plan.load(None), "path.*NoneType"),
        (lambda _: cs.plan(nets.Plain(), X, forms=3), "forms.*int"),
        (lambda _: cs.plan(nets.Plain(), X, forms={None: None}), "forms.*NoneType"),
        (lambda _: cs.select.parse(3), "policy.*int"),
        (lambda _: cs.Energy("0.5"), "Energy.*0.5"),
        (lambda _: cs.Within(1.0, metric=3), "metric"),
        (lambda _: cs.Recipe(epochs="3"), "epochs"),
        (lambda _: cs.Recipe(hold_back=1.5), "hold_back"),
        (lambda _: cs.Recipe(seed=-1), "seed"),
        (lambda _: cs.Recipe(seed=0.5), "seed"),
    ],
)
def test_what_another_function_takes_is_refused(
    call: Callable[[cs.Result], object], named: str, result: cs.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cs.ConvSurgeonError, match=named):
        call(result)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tolerance", [None, 0.01])
@pytest.mark.parametrize("metric", [None, len])
def test_a_goal_is_printed_before_it_is_used(tolerance: Any, metric: Any) -> None:
    assert ("len" if metric else "error") in str(cs.Within(tolerance, metric=metric))
