"""Small float graphs, written node by node, and what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

CHANNELS, INNER, SIZE = 6, 10, 8

Feed = dict[str, npt.NDArray[np.float32]]


class Writer:
    """Collects nodes and constants; every conv has a name, a weight `NAME.weight` and perhaps a bias."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.random = np.random.default_rng(seed)

    def conv(
        self, name: str, source: str, shape: Sequence[int], bias: bool = True, groups: int = 1, **more: Any
    ) -> str:
        kernel = self.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        kernel *= 2.0 ** self.random.uniform(-3, 3, (shape[0], *[1] * (len(shape) - 1)))
        self.constants.append(numpy_helper.from_array(kernel.astype(np.float32), f"{name}.weight"))
        inputs = [source, f"{name}.weight"]
        if bias:
            values = self.random.standard_normal(shape[0]).astype(np.float32)
            self.constants.append(numpy_helper.from_array(values, f"{name}.bias"))
            inputs.append(f"{name}.bias")
        pads = [size // 2 for size in shape[2:]] * 2
        self.nodes.append(
            helper.make_node("Conv", inputs, [name], name, kernel_shape=shape[2:], pads=pads, group=groups, **more)
        )
        return name

    def node(self, kind: str, name: str, *inputs: str, **more: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **more))
        return name

    def model(self, output: str, batch: int | str = 4) -> ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, CHANNELS, SIZE, SIZE])
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "graph", [x], [y], self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        return onnx.shape_inference.infer_shapes(made)


def CHAIN(batch: int | str = 4) -> ModelProto:  # a network
    """A CP layer between two convs: pointwise, depthwise, pointwise."""
    write = Writer()
    stem = write.node("Relu", "relu", write.conv("stem", "x", (CHANNELS, CHANNELS, 3, 3)))
    inner = write.conv("reduce", stem, (INNER, CHANNELS, 1, 1), bias=False)
    window = write.conv("depthwise", inner, (INNER, 1, 3, 3), bias=False, groups=INNER)
    return write.model(write.conv("expand", window, (CHANNELS, INNER, 1, 1)), batch)


def BRANCHES(count: int, bias: Sequence[bool], **last: Any) -> ModelProto:
    """A separable conv of several branches and their sum."""
    write = Writer()
    total = ""
    for number in range(count):
        window = write.conv(f"depthwise{number}", "x", (CHANNELS, 1, 3, 3), bias=False, groups=CHANNELS)
        more = last if number == count - 1 else {}
        term = write.conv(f"pointwise{number}", window, (INNER, CHANNELS, 1, 1), bias[number], **more)
        total = write.node("Add", f"sum{number}", term, total) if total else term
    return write.model(total)


def feeds(count: int = 6) -> list[Feed]:
    random = np.random.default_rng(1)
    return [{"x": random.standard_normal((4, CHANNELS, SIZE, SIZE)).astype(np.float32)} for _ in range(count)]


def outputs(model: ModelProto, data: Sequence[Feed]) -> npt.NDArray[np.float64]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in data]).astype(np.float64)


def relative(wanted: npt.NDArray[np.float64], got: npt.NDArray[np.float64]) -> float:
    return float(((got - wanted) ** 2).sum() / (wanted**2).sum())
