"""PReLU as ReLU and products: the same to the bit, and left alone where the slopes are not stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

import convsurgeon as cs
from convsurgeon.graph.capture import capture
from convsurgeon.onnxnet.measuring.engine import Engine
from convsurgeon.onnxnet.prelu import rewrite_prelu
from convsurgeon.runtime.measure import Settings, compare_plan
from convsurgeon.runtime.network_graph import build_graph, export_skeleton, is_written_anew


def _model(slope: np.ndarray, rank: int = 4, times: int = 1) -> ModelProto:
    shape = (2, 3, 5, 4)[:rank]
    nodes = [
        helper.make_node("PRelu", [f"v{index}", "slope"], [f"v{index + 1}"], f"prelu{index}") for index in range(times)
    ]
    graph = helper.make_graph(
        nodes,
        "prelu",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"v{times}", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(slope, "slope")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)


def _run(model: ModelProto, image: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"v0": image})[0]
    return found


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1, 1), (1,), (1, 1, 1)])
@pytest.mark.parametrize("values", [[0.25, 0.0, -0.5], [1.0, 900.0, -30.0]])
def test_it_is_the_same_to_the_bit(shape: tuple[int, ...], values: list[float], times: int) -> None:
    slope = np.resize(np.array(values, np.float32), shape)
    model = _model(slope, times=times)
    image = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    before = _run(model, image)
    assert rewrite_prelu(model)
    assert not {node.op_type for node in model.graph.node} & {"PRelu"}
    np.testing.assert_array_equal(_run(model, image), before)


@pytest.mark.parametrize(("shape", "rank"), [((3, 5, 4), 4), ((3, 1), 3)])
def test_other_slopes_stay(shape: tuple[int, ...], rank: int) -> None:
    model = _model(np.ones(shape, np.float32), rank)
    before = model.SerializeToString()
    assert not rewrite_prelu(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("ir_version", [3, 8])
def test_slopes_of_constant_nodes_are_told_apart_and_old_files_declare_theirs(ir_version: int) -> None:
    """Whose tensors may all have one name, or none; before IR 4 every stored value is an input, too."""
    model = _model(np.ones((3, 1, 1), np.float32), times=2)
    del model.graph.initializer[:]
    model.ir_version, model.opset_import[0].version = ir_version, 9
    for index, values in enumerate(([0.5, 0.1, -1.0], [2.0, 0.0, 0.3])):
        slope = numpy_helper.from_array(np.array(values, np.float32).reshape(3, 1, 1), "value")
        model.graph.node.insert(0, helper.make_node("Constant", [], [f"slope{index}"], value=slope))
        model.graph.node[-1 - (1 - index)].input[1] = f"slope{index}"
    image = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    before = _run(model, image)
    assert rewrite_prelu(model)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(_run(model, image), before)


def test_slopes_that_a_caller_may_pass_stay() -> None:
    model = _model(np.ones((3, 1, 1), np.float32))
    model.graph.input.append(helper.make_tensor_value_info("slope", TensorProto.FLOAT, (3, 1, 1)))
    assert not rewrite_prelu(model)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.act = nn.Conv2d(1, 16, 3, padding=1), nn.PReLU(16)
        self.b = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.act(self.a(x)))  # type: ignore[no-any-return]


def test_a_bundle_compares_with_the_file_that_torch_writes(tmp_path: Path) -> None:
    model = Net().eval()
    result = cs.convert(model, torch.zeros(1, 1, 16, 16), forms={"*": None}, calibration=False)
    bundle = cs.export(result, tmp_path / "out", progress=False)
    kinds = [
        {node.op_type for node in _load(bundle.folder / name).graph.node} for name in ("original.onnx", "model.onnx")
    ]
    assert "PRelu" in kinds[0]
    assert "PRelu" not in kinds[1]
    assert bundle.rewritten
    again = cs.convert(bundle.folder / "original.onnx", forms={"*": None}, calibration=False)
    made = cs.onnx.export(again.model, None, tmp_path / "again.onnx")
    assert "PRelu" not in {node.op_type for node in _load(made.path).graph.node}


def _load(path: Path) -> ModelProto:
    return ModelProto.FromString(path.read_bytes())


def test_networks_are_timed_as_they_are_written_and_compared_with_what_they_were() -> None:
    seen = capture(Net().eval(), torch.zeros(1, 1, 16, 16))
    bare = export_skeleton(seen, progress=False)
    assert is_written_anew(seen)
    kinds = [{node.op_type for node in build_graph(bare, {}, as_it_was=old).model.graph.node} for old in (True, False)]
    assert "PRelu" in kinds[0]
    assert "PRelu" not in kinds[1]
    nothing = cs.plan(seen.model, seen.example, forms={"*": None})
    verdict = compare_plan(seen, nothing, Settings(Engine(1), "fp32", 1, False), as_it_was=True)
    assert verdict.speedup > 0
