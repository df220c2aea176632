"""Networks that decide at the end are judged, fitted and trained at what they decide by."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file
from torch import Tensor, nn

import convsurgeon as cs
from convsurgeon.graph.capture import capture
from convsurgeon.graph.outputs import answer
from convsurgeon.int8.compare import measure_agreement
from examples import digits
from tests.nets import Plain
from tests.test_smoke import EXAMPLES

X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LETTERS = "abcdefghij"


class Decides(nn.Module):
    """A network and what is made of its values."""

    def __init__(self, net: nn.Module, decide: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.decide = net, decide

    def forward(self, x: Tensor) -> Any:
        return self.decide(self.net(x))


def _detections(values: Tensor) -> tuple[Tensor, Tensor]:
    best, index = values.topk(3)
    boxes = torch.stack([values * 2, values + 1], -1)
    return best, boxes.gather(1, index[..., None].expand(-1, -1, 2))


def _masked(values: Tensor) -> Tensor:
    values = values * 1
    values[values < 0] = -1e4
    return values


AT_LOGITS: dict[str, Callable[[Tensor], Any]] = {
    "argmax": lambda values: values.argmax(1),
    "> 0": lambda values: values > 0,
    "mask in floats": lambda values: (values > 0).float() * 2,
    "bytes": lambda values: values.to(torch.uint8),
    "rounded": torch.round,
    "NumPy": lambda values: values.detach().numpy(),
    "NumPy and back": lambda values: torch.from_numpy(values.detach().numpy().argmax(1)),
    "lists": lambda values: values.tolist(),
    "labels": lambda values: [LETTERS[int(index)] for index in values.argmax(1)],
    "both": lambda values: {"logits": values, "class": values.argmax(1), "name": "x"},
    "nonzero": lambda values: (values > 0).nonzero(),
    "selected": lambda values: values[values > 0],
    "overwritten": _masked,
}


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("decide", AT_LOGITS)
def test_what_is_picked_from_is_found(decide: str, gradients: bool) -> None:
    model = Decides(_net(), AT_LOGITS[decide])
    with torch.set_grad_enabled(gradients):
        found = answer(model, cs.Example.of(X))
        wanted = model.net(X)
    assert found.judged
    assert all(torch.equal(one, wanted) for one in found.judged)
    assert all(one.requires_grad == gradients for one in found.judged)
    assert bool(found.where) == (decide != "both")


def test_outputs_that_are_values_are_judged_as_they_are() -> None:
    for decide in (nn.Identity(), torch.sigmoid, lambda values: values.max(1).values, torch.relu, torch.fft.fft):
        found = answer(Decides(_net(), decide), cs.Example.of(X))
        assert len(found.judged) == 1
        assert not found.where


def test_boxes_are_judged_before_the_best_are_taken() -> None:
    found = answer(Decides(_net(), _detections), cs.Example.of(X))
    assert [tuple(one.shape) for one in found.judged] == [(4, 10), (4, 10, 2)]


def test_picks_with_convs_behind_them_are_no_decisions() -> None:
    def gated(values: Tensor) -> Tensor:
        return nn.functional.linear(values * (values > 0), torch.ones(2, 10))

    found = answer(Decides(_net(), gated), cs.Example.of(X))
    assert [tuple(one.shape) for one in found.judged] == [(4, 2)]
    assert not found.where


def test_masks_of_the_input_and_constants_are_no_decisions() -> None:
    class Masked(Plain):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) * (x.mean((1, 2, 3)) > 0)[:, None], torch.arange(3.0), x, x > 0

    torch.manual_seed(0)
    found = answer(Masked().eval(), cs.Example.of(torch.randn(2, 3, 12, 12)))
    assert len(found.judged) == 1
    assert not found.where


def test_where_nothing_is_floating_point_it_is_refused_at_once() -> None:
    class Counts(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return torch.arange(len(x))

    with pytest.raises(cs.errors.CalibrationError, match="calibration=False"):
        cs.convert(Counts(), X, calibration=torch.randn(16, 3, 12, 12), progress=False)


def test_a_file_that_decides_is_judged_before_its_argmax(tmp_path: Any) -> None:
    weight = np.random.default_rng(0).standard_normal((5, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("ArgMax", ["y"], ["z"], axis=1, keepdims=0),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])]
    made = [helper.make_tensor_value_info("z", TensorProto.INT64, ["n", 12, 12])]
    graph = helper.make_graph(nodes, "g", given, made, [onnx.numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    model = capture(tmp_path / "a.onnx", X).model
    with torch.no_grad():
        found = answer(model, cs.Example.of(X))
        expected = nn.functional.conv2d(X, torch.from_numpy(weight), padding=1)
    assert "ArgMax" in found.where
    torch.testing.assert_close(found.judged, [expected])
    other = onnx.load(tmp_path / "a.onnx")
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array((weight * 0.9).astype(np.float32), "w"))
    onnx.save(other, tmp_path / "b.onnx")
    same, near = (
        measure_agreement(tmp_path / "a.onnx", tmp_path / name, [{"x": X.numpy()}]) for name in ("a.onnx", "b.onnx")
    )
    assert (same.error, same.lost) == (0, 0)
    assert near.error == pytest.approx(0.01, rel=0.1)  # all classes that win are the same


@pytest.mark.parametrize(
    "decide", ["argmax", *(pytest.param(name, marks=pytest.mark.slow) for name in ("labels", "NumPy"))]
)
def test_digits_that_decide_keep_their_accuracy(decide: str) -> None:
    model = Decides(digits.digit_net(), AT_LOGITS[decide]).eval()
    model.net.load_state_dict(load_file(EXAMPLES / "digits.safetensors"))
    images = torch.from_numpy(np.load(EXAMPLES / "digits_calibration.npy"))[:160]
    forms = [cs.DepthwiseSeparable(rank=1)]
    result = cs.convert(model, images[:1], forms=forms, calibration=images, progress=False)
    fits = result.report.reconstruction
    assert fits is not None
    assert 0 < fits.error_after < 0.5 * fits.error_before
    assert result.report.fidelity is not None
    assert result.report.fidelity.where
    assert digits.accuracy(result.model.get_submodule("net")) >= 98.5
    better = cs.recover(result, images, recipe=cs.Recipe(epochs=1), progress=False).report.recovery
    assert better is not None
    assert better.after.error <= better.before.error


def test_decisions_image_by_image_are_one_line() -> None:
    class Words(nn.Conv2d):
        def forward(self, x: Tensor) -> list[str]:  # type: ignore[override]
            return ["yes" if value > 0 else "no" for value in super().forward(x).mean((1, 2, 3))]

    model, images = nn.Sequential(nn.Conv2d(3, 8, 3), Words(8, 8, 1)).eval(), torch.randn(40, 3, 8, 8)
    forms = {"0": cs.DepthwiseSeparable(rank=1)}
    with pytest.raises(cs.errors.CalibrationError, match="picks from"):
        cs.recover(cs.convert(model, images[:1], calibration=images, forms=forms), images, recipe=cs.Recipe(epochs=1))


def test_values_that_nothing_is_picked_from_are_let_go() -> None:
    """As many values are alive as in the network's own forward, not all of them to its end."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Conv2d(2, 2, 3), nn.Sigmoid()).eval()
    made: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []
    model[0].register_forward_hook(lambda _module, _args, out: made.append(weakref.ref(out)))
    model[3].register_forward_pre_hook(lambda *_: alive.append(made[-1]() is not None))
    with torch.no_grad():
        answer(model, cs.Example.of(torch.randn(1, 1, 8, 8)))
    assert alive == [False]
