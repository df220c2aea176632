"""ONNX files that others made, and one that is too large for a single message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from tests import networks
from tests.benchmarks.cases import need

VISION = (
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "regnet_y_400mf",
    "densenet121",
    "efficientnet_b0",
    "convnext_tiny",
)
TIMM = ("mobilenetv3_small_050", "tf_efficientnet_lite0", "ghostnet_050", "repvgg_a0")


def makers() -> dict[str, Callable[[], nn.Module]]:
    """Return networks of torchvision and timm by name, with random weights."""
    vision, timm = need(networks.import_torchvision), need(networks.import_timm)
    found = {name: lambda name=name: vision.models.get_model(name) for name in VISION}
    return found | {name: lambda name=name: timm.create_model(name) for name in TIMM}


def export_trained(model: nn.Module, path: Path, dynamo: bool) -> None:
    """Write a network by one of torch's exporters, with batch norms as if it had been trained."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    example = (torch.randn(1, 3, 64, 64),)
    torch.onnx.export(model.eval(), example, path, dynamo=dynamo, external_data=False, verbose=False)


def backend_cases() -> Iterator[tuple[str, ModelProto]]:
    """Yield every case of onnx's tests with a conv: as it is, and with its weights stored where they are inputs."""
    import onnx.backend.test
    from onnx.backend.test.case.node import collect_testcases

    data = Path(onnx.backend.test.__file__).parent / "data"
    cases = [(path.parent.name, onnx.load(path)) for path in sorted(data.rglob("model.onnx"))]
    cases += [(case.name, case.model) for case in collect_testcases("") if case.model is not None]
    for name, model in cases:
        if any("Conv" in node.op_type for node in model.graph.node):
            yield name, model
            yield f"{name}, stored", _stored(model)


def _stored(model: ModelProto) -> ModelProto:
    made = ModelProto.FromString(model.SerializeToString())
    draw, stored = np.random.default_rng(0), {one.name for one in made.graph.initializer}
    weights = {name for node in made.graph.node if node.op_type == "Conv" for name in node.input[1:]} - stored
    for info in [info for info in made.graph.input if info.name in weights]:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        made.graph.initializer.append(numpy_helper.from_array(draw.standard_normal(shape).astype("f"), info.name))
        made.graph.input.remove(info)
    made.ir_version = max(4, made.ir_version)
    return made


def write_large(path: Path, gigabytes: float) -> None:
    """Write two convs, and two matrices that make up the size; one message of protobuf ends at 2 GB."""
    rows = int(gigabytes * 1e9 / 2 / 4 / 16384)
    draw = np.random.default_rng(0)
    matrix = np.full((16384, rows), 1e-3, dtype="f")
    matrix[::7] = -1e-3
    kernels = [draw.standard_normal((16, 16, 3, 3)).astype("f") / 12 for _ in range(2)]
    arrays = {"w0": kernels[0], "w1": kernels[1], "m0": matrix, "m1": matrix}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "conv0", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w1"], ["c"], "conv1", pads=[1] * 4),
        helper.make_node("Flatten", ["c"], ["d"], "flat"),
        *(helper.make_node("MatMul", ["d", f"m{place}"], [f"y{place}"], f"head{place}") for place in range(2)),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 32, 32])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, rows]) for name in ("y0", "y1")]
    stored = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "large", inputs, ends, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin")
