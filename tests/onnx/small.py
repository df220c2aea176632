"""Small networks and hand-made ONNX files for the deploy tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn


class Branches(nn.Module):
    """A rank-2 separable conv, shaped like the ones the surgery makes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential() for _ in range(2))
        for index, branch in enumerate(self.branches):
            branch.add_module("depthwise", nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False))
            branch.add_module("pointwise", nn.Conv2d(channels, channels, 1, bias=index == 0))

    def forward(self, x: Tensor) -> Tensor:
        return self.branches[1](x) + self.branches[0](x)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = Branches(channels), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu, self.drop, self.nothing = nn.ReLU(), nn.Dropout(0.5), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.drop(self.relu(self.bn1(self.conv1(x))))
        return self.relu(self.nothing(self.bn2(self.conv2(out))) + x)


class Net(nn.Module):
    """Residual, with branches, batch norms in train mode, dropout, identity, global pooling and a linear head."""

    def __init__(self, channels: int = 8, blocks: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.layer1 = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.layer1(self.stem(x))), 1))


def net() -> Net:
    """A net whose batch norms do something."""
    torch.manual_seed(0)
    made = Net()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return made


def conv_stack(path: Path, layers: int, channels: int = 16, size: int = 12, batch: int | str = 1) -> Path:
    """Writes an ONNX file of equal 3x3 convs with ReLUs; time goes with the number of layers."""
    random = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for index in range(layers):
        kernel = random.standard_normal((channels, channels, 3, 3)) / (3 * channels**0.5)
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{index}"))
        conv = helper.make_node(
            "Conv", [value, f"w{index}"], [f"c{index}"], f"conv{index}", kernel_shape=[3, 3], pads=[1, 1, 1, 1]
        )
        value = f"r{index}" if index < layers - 1 else "y"
        nodes += [conv, helper.make_node("Relu", [f"c{index}"], [value], f"relu{index}")]
    shape = [batch, channels, size, size]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "stack", *ends, weights), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    onnx.save(model, path)
    return path
