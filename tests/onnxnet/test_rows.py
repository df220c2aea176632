"""1-d convs of a file become convs of one row that compute the same."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import convsurgeon as cs
from convsurgeon.onnxnet.rows import put_in_rows

_ATTRIBUTES = [
    {"kernel_shape": [kernel], "strides": [stride], "dilations": [dilation], "group": group, **padding}
    for kernel, stride, dilation, group, padding in itertools.product(
        (1, 3, 4), (1, 2), (1, 2), (1, 2, 4), ({}, {"pads": [1, 2]}, {"auto_pad": "SAME_UPPER"})
    )
    if not ("auto_pad" in padding and dilation > 1)
]


def _model(opset: int, passed: bool = False, **attributes: Any) -> onnx.ModelProto:
    """Return two 1-d convs of one weight, one after the other where the padding lets them."""
    kernel, group = attributes["kernel_shape"][0], attributes["group"]
    random = np.random.default_rng(0)
    weight = random.standard_normal((4, 4 // group, kernel)).astype(np.float32)
    bias = random.standard_normal(4).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "one", **attributes),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["x", "w"], ["d"], "two", **attributes),
        helper.make_node("Add", ["r", "d"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 20])]
    if passed:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, weight.shape))
    graph = helper.make_graph(
        nodes, "rows", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, "l"])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def _run(model: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run(None, {"x": x})[0]
    return found


@pytest.mark.parametrize("opset", [11, 17])
def test_a_row_gives_what_the_line_gave(opset: int) -> None:
    x = np.random.default_rng(1).standard_normal((2, 4, 20)).astype(np.float32)
    for attributes in _ATTRIBUTES:
        before, after = _model(opset, **attributes), _model(opset, **attributes)
        put_in_rows(after.graph, opset)
        onnx.checker.check_model(after)
        assert [len(tensor.dims) for tensor in after.graph.initializer if tensor.name == "w"] == [4]
        np.testing.assert_allclose(_run(after, x), _run(before, x), atol=1e-5, err_msg=str(attributes))


def test_a_weight_that_a_caller_may_pass_stays() -> None:
    before = _model(17, passed=True, **_ATTRIBUTES[0])
    after = _model(17, passed=True, **_ATTRIBUTES[0])
    put_in_rows(after.graph, 17)
    assert after == before


def test_a_file_of_lines_is_converted_and_rebuilt(tmp_path: Path) -> None:
    onnx.save(_model(17, kernel_shape=[3], strides=[1], dilations=[1], group=1, pads=[1, 1]), tmp_path / "line.onnx")
    x = torch.randn(8, 4, 20, generator=torch.Generator().manual_seed(0))
    forms = {"two": cs.CP(rank=4)}
    result = cs.convert(tmp_path / "line.onnx", x, calibration=x, forms=forms, progress=False)
    assert set(result.changes) == {"two"}
    cs.onnx.export(result.model, x, tmp_path / "rows.onnx")
    np.testing.assert_allclose(
        _run(onnx.load(tmp_path / "rows.onnx"), x.numpy()), result.model(x).detach().numpy(), atol=1e-5
    )
    fresh = cs.rebuild(tmp_path / "line.onnx", result.plan)
    fresh.load_state_dict(result.model.state_dict())
    assert torch.equal(fresh(x), result.model(x))


def test_a_conv_whose_weight_something_else_reads_stays_beside_others_in_rows() -> None:
    x = np.random.default_rng(1).standard_normal((2, 4, 20)).astype(np.float32)
    made = [_model(17, kernel_shape=[3], strides=[1], dilations=[1], group=1, pads=[1, 1]) for _ in range(2)]
    for model in made:
        other = numpy_helper.from_array(np.full((4, 4, 3), 0.5, np.float32), "v")
        model.graph.initializer.append(other)
        model.graph.node[2].input[1] = "v"
        model.graph.node.append(helper.make_node("ReduceSum", ["v"], ["sum"], keepdims=0))
        model.graph.node.append(helper.make_node("Add", ["y", "sum"], ["z"]))
        model.graph.output[0].name = "z"
    put_in_rows(made[1].graph, 17)
    assert [node.op_type for node in made[1].graph.node].count("Unsqueeze") == 1
    np.testing.assert_allclose(_run(made[1], x), _run(made[0], x), atol=1e-5)
