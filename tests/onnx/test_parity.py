from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from convsurgeon.base.errors import ParityError
from convsurgeon.onnx.exporter import export
from convsurgeon.onnx.inputs import order_example, randomise, resize_example
from convsurgeon.onnx.parity import Parity, ParityCase, check_parity, deviation
from tests.onnx.small import net

IMAGE = (1, 3, 12, 12)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(net(), torch.randn(IMAGE), tmp_path_factory.mktemp("parity") / "net.onnx").path


def test_every_case_with_optimisations_off_and_on(path: Path) -> None:
    parity = check_parity(net(), torch.randn(IMAGE), path, seeds=(3, 4))
    assert [(case.inputs, case.optimised) for case in parity.cases] == [
        (name, optimised) for name in ("example", "seed 3", "seed 4") for optimised in (False, True)
    ]
    assert parity.passed
    assert parity.fault == "none"
    assert parity.relative == max(case.relative for case in parity.cases) < 1e-5
    assert parity.sqnr_db == min(case.sqnr_db for case in parity.cases) > 100
    assert str(parity).count("holds") == 6


def test_a_changed_weight_fails_by_the_fault_of_the_export(path: Path) -> None:
    other = net()
    with torch.no_grad():
        other.fc.weight[0, 0] += 0.05
    parity = check_parity(other, torch.randn(IMAGE), path)
    assert not parity.passed
    assert parity.fault == "the export"
    assert "FAILS" in str(parity)


def test_limits_are_limits(path: Path) -> None:
    image = torch.randn(IMAGE)
    assert not check_parity(net(), image, path, relative=1e-12).passed
    assert not check_parity(net(), image, path, sqnr_db=200).passed


def test_a_failure_with_optimisations_on_only() -> None:
    cases = (ParityCase("example", False, 1e-7, 130, True), ParityCase("example", True, 0.1, 20, False))
    assert Parity(cases, 1e-4, 80).fault == "the runtime's optimisations"
    assert not Parity((), 1e-4, 80).passed


def test_nan_is_a_failure(tmp_path: Path) -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(x)

    done = square_root(tmp_path)
    parity = check_parity(Root(), -torch.ones(IMAGE), done, seeds=())
    assert not parity.passed
    assert parity.relative == math.inf
    assert not parity.cases[0].passed


def square_root(folder: Path) -> Path:
    """The root of noise is NaN, so the gate would not let this model through."""
    node = onnx.helper.make_node("Sqrt", ["x"], ["y"], "sqrt")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, IMAGE) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(made, folder / "sqrt.onnx")
    return folder / "sqrt.onnx"


def test_a_file_that_does_not_fit(path: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"garbage")
    with pytest.raises(ParityError, match=r"bad.onnx: onnxruntime cannot load it"):
        check_parity(net(), torch.zeros(IMAGE), tmp_path / "bad.onnx")
    with pytest.raises(ParityError, match=r"net.onnx: 1 inputs in the ONNX file, 2 tensors in the example"):
        check_parity(nn.Bilinear(3, 3, 3), (torch.zeros(1, 3), torch.zeros(1, 3)), path)
    with pytest.raises(ParityError, match=r"net.onnx: onnxruntime cannot run it on the example"):
        check_parity(net(), torch.zeros(1, 3, 8, 8), path)


@given(st.floats(1e-9, 0.5), st.integers(0, 2**32 - 1))
def test_deviation_is_what_it_says(share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    wanted = random.standard_normal((4, 5))
    relative, sqnr = deviation(wanted, wanted * (1 + share))
    assert math.isclose(relative, share, rel_tol=1e-6)
    assert math.isclose(sqnr, -20 * math.log10(share), rel_tol=1e-6)


def test_deviation_at_the_edges() -> None:
    one, zero = np.ones(3), np.zeros(3)
    assert deviation(one, one) == (0.0, math.inf)
    assert deviation(zero, zero) == (0.0, math.inf)
    assert deviation(np.zeros((0, 2)), np.zeros((0, 2))) == (0.0, math.inf)
    for wanted, got in (
        (zero, one),
        (one, np.ones(4)),
        (one, one * math.nan),
        (one * math.nan, one),
        (one, one * math.inf),
    ):
        assert deviation(wanted, got) == (math.inf, -math.inf)


def test_a_large_sum_does_not_lose_small_errors() -> None:
    wanted = np.full(10**6, 1e4, np.float32)
    got = wanted.copy()
    got[0] += 1
    assert math.isclose(deviation(wanted, got)[1], 10 * math.log10(1e14), rel_tol=1e-6)


def test_random_inputs_are_like_the_example() -> None:
    call = order_example(net(), (5 + 3 * torch.randn(1, 3, 64, 64), torch.arange(6), torch.full((4,), 2.0)))
    image, index, constant = randomise(call, 0).tensors()
    assert abs(float(image.mean()) - 5) < 0.2
    assert abs(float(image.std()) - 3) < 0.2
    assert torch.equal(index, torch.arange(6))
    assert float(constant.std()) > 0  # a constant example is no reason to test one point only
    assert torch.equal(randomise(call, 0).tensors()[0], image)
    assert not torch.equal(randomise(call, 1).tensors()[0], image)


def test_resizing_repeats_and_cuts() -> None:
    call = order_example(net(), torch.arange(6.0).reshape(1, 1, 2, 3))
    assert resize_example(call, {0: lambda _: 3}).tensors()[0].shape == (3, 1, 2, 3)
    assert resize_example(call, {2: lambda size: 2 * size}, rank=4).tensors()[0][0, 0, :, 0].tolist() == [0, 3, 0, 3]
    assert resize_example(call, {2: lambda size: 2 * size}, rank=5).tensors()[0].shape == (1, 1, 2, 3)
