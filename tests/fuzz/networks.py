"""ONNX files of random nodes with attributes of every kind: at full rank they compute the same, or are refused.

A third of them is damaged afterwards: an attribute changed, a node taken out, an input put elsewhere.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto

import convsurgeon as cs
from convsurgeon.onnxnet import proto
from tests.onnxnet.files import Graph, feed_of, run

_UNARY: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("Relu", {}), ("LeakyRelu", {"alpha": 0.2}), ("Sigmoid", {}), ("Tanh", {}), ("HardSigmoid", {})),
    *(("Elu", {}), ("Softplus", {}), ("Identity", {}), ("Neg", {}), ("Abs", {}), ("Softmax", {"axis": 1})),
    *(("HardSigmoid", {"alpha": 1 / 6}), ("Selu", {}), ("InstanceNormalization", {}), ("Erf", {}), ("Exp", {})),
)


class _Maker:
    """One graph; every value is (name, channels, height, width) with a batch before it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        opset = rng.choice((7, 9, 10, 11, 12, 13, 16, 18, 21))
        self.graph = Graph(opset, ir=rng.choice((3, 4, 8)) if opset < 15 else 8, dtype=np.float32)
        self.graph.random = np.random.default_rng(rng.randrange(1 << 30))
        self.channels = rng.choice((1, 2, 3, 4, 6))
        self.batch = rng.choice((1, 1, 2))
        self.size = (rng.randint(3, 9), rng.randint(3, 9))
        self.values: list[tuple[str, int]] = [("x", self.channels)]
        self.count = 0
        self.kernels: list[tuple[str, int, int, Any]] = []

    def fresh(self) -> str:
        self.count += 1
        return self.rng.choice((f"v{self.count}", f"block.{self.count}", f"/a/b{self.count}/out", f"v:{self.count}"))

    def name(self) -> str:
        """Of a node: none, a plain one, a path, one that means something in Python, now and then one that is taken."""
        number, taken = self.count, "same" if self.rng.random() < 0.05 else f"training.{self.count}"
        return self.rng.choice(
            ("", f"n{number}", f"/layer/conv{number}/Conv", f"é{number}", f"modules.{number}", taken)
        )

    def pick(self) -> tuple[str, int]:
        return self.rng.choice(self.values[-3:])

    def put(self, kind: str, inputs: list[str], channels: int, **attributes: Any) -> None:
        output = self.fresh()
        self.graph.node(kind, inputs, output, self.name(), **attributes)
        self.values.append((output, channels))

    def conv(self) -> None:
        rng, (x, channels) = self.rng, self.pick()
        again = [one for one in self.kernels if one[1] == channels]
        if again and rng.random() < 0.2:
            weight, _, outputs, attributes = rng.choice(again)
        else:
            groups = rng.choice([1, 1, 1, *(g for g in (2, 3, channels) if channels % g == 0)])
            outputs = groups * rng.choice((1, 2, 3))
            kernel = [rng.choice((1, 2, 3, 3, 5)), rng.choice((1, 2, 3, 3, 5))]
            attributes = self.attributes(kernel, groups)
            weight = self.weight(outputs, channels // groups, kernel)
            self.kernels.append((weight, channels, outputs, attributes))
        inputs = [x, weight]
        if rng.random() < 0.6:
            inputs.append(self.graph.weight(f"b{self.count}.{len(self.graph.stored)}", outputs))
        self.put("Conv", inputs, outputs, **attributes)

    def attributes(self, kernel: list[int], groups: int) -> dict[str, Any]:
        rng = self.rng
        made: dict[str, Any] = {} if rng.random() < 0.2 else {"kernel_shape": kernel}
        if groups > 1 or rng.random() < 0.3:
            made["group"] = groups
        if rng.random() < 0.5:
            made["strides"] = [rng.choice((1, 1, 2, 3)), rng.choice((1, 2))]
        if rng.random() < 0.3:
            made["dilations"] = [rng.choice((1, 2)), rng.choice((1, 1, 2))]
        padding = rng.random()
        if padding < 0.3:
            made["auto_pad"] = rng.choice(("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"))
            if rng.random() < 0.95:  # which the runtime has not together
                made.pop("dilations", None)
        elif padding < 0.8:
            made["pads"] = [rng.randint(0, 2) for _ in range(4)]
        return made

    def weight(self, outputs: int, inputs: int, kernel: list[int]) -> str:
        """Stored, or a Constant, or turned by a Transpose."""
        name, kind = self.rng.choice((f"w{self.count}", f"layer{self.count}.conv.weight")), self.rng.random()
        name = f"{name}_{len(self.graph.stored)}" if any(one.name == name for one in self.graph.stored) else name
        if kind < 0.7:
            return self.graph.weight(name, outputs, inputs, *kernel)
        values = self.graph.random.standard_normal((outputs, inputs, *kernel)).astype(np.float32) / 3
        if kind < 0.85:
            return self.graph.node("Constant", [], name, value=onnx.numpy_helper.from_array(values))
        stored = self.graph.const(f"{name}.turned", np.ascontiguousarray(values.transpose(2, 3, 1, 0)))
        return self.graph.node("Transpose", [stored], name, perm=[3, 2, 0, 1])

    def other(self) -> None:
        rng, (x, channels) = self.rng, self.pick()
        kind = rng.choice(
            ("unary", "unary", "add", "mul", "concat", "pool", "norm", "affine", "gate", "transpose", "pad")
        )
        if kind == "unary":
            name, attributes = rng.choice(_UNARY)
            inputs = [x]
            if name == "InstanceNormalization":
                inputs += [self.graph.weight(f"i{self.count}.{part}", channels, scale=1.0) for part in ("s", "b")]
            self.put(name, inputs, channels, **attributes)
        elif kind in ("add", "mul", "concat"):
            y, others = rng.choice(self.values)
            whole = {"add": "Add", "mul": "Mul", "concat": "Concat"}[kind]
            self.put(
                whole,
                [x, y],
                channels + others if kind == "concat" else channels,
                **({"axis": 1} if kind == "concat" else {}),
            )
        elif kind == "pool":
            attributes = self.attributes([rng.randint(1, 3), rng.randint(1, 3)], 1)
            attributes.pop("group", None)
            attributes.setdefault("kernel_shape", [2, 2])
            which = rng.choice(("MaxPool", "AveragePool"))
            if which == "AveragePool" or self.graph.opset < 10:
                attributes.pop("dilations", None)
            if which == "AveragePool" and rng.random() < 0.5:
                attributes["count_include_pad"] = 1
            if rng.random() < 0.2 and self.graph.opset >= 10:
                attributes["ceil_mode"] = 1
            self.put(which, [x], channels, **attributes)
        elif kind == "norm":
            parts = [self.graph.weight(f"n{self.count}.{part}", channels, scale=0.7) for part in "sbm"]
            spread = self.graph.const(
                f"n{self.count}.v", self.graph.random.uniform(0.5, 2, channels).astype(np.float32)
            )
            self.put("BatchNormalization", [x, *parts, spread], channels)
        elif kind == "affine":
            self.put(
                rng.choice(("Add", "Mul", "Sub")), [x, self.graph.weight(f"a{self.count}", 1, channels, 1, 1)], channels
            )
        elif kind == "gate":
            gate = self.fresh()
            self.graph.node("Sigmoid", [x], gate)
            self.put("Mul", rng.sample([x, gate], 2), channels)
        elif kind == "transpose":
            self.put("Transpose", [x], channels, perm=[0, 1, 3, 2])
        elif self.graph.opset >= 11:
            pads = self.graph.const(f"p{self.count}", np.array([0, 0, 1, 0, 0, 0, 0, 2], dtype=np.int64))
            self.put("Pad", [x, pads], channels, mode=rng.choice(("constant", "reflect", "edge")))

    def model(self) -> ModelProto:
        for _ in range(self.rng.randint(2, 8)):
            kept = [list(one) for one in (self.values, self.graph.nodes, self.graph.stored, self.kernels)]
            self.conv() if self.rng.random() < 0.5 else self.other()
            if not _fits(self._made(self.batch)) and self.rng.random() < 0.97:
                self.values, self.graph.nodes, self.graph.stored, self.kernels = kept  # type: ignore[assignment]
        return self._made(self.rng.choice((self.batch, self.batch, "n")))

    def _made(self, batch: Any) -> ModelProto:
        return self.graph.model(self.values[-1][0], inputs=[("x", [batch, self.channels, *self.size])], rank=4)


def _fits(model: ModelProto) -> bool:
    """Whether shapes go together as far as onnx can tell, and nothing is empty."""
    try:
        shapes = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    except onnx.shape_inference.InferenceError:
        return False
    return all(dim.dim_value > 0 for info in shapes for dim in info.type.tensor_type.shape.dim)


def _damaged(rng: random.Random, model: ModelProto) -> ModelProto:
    """With one thing changed."""
    made = ModelProto.FromString(model.SerializeToString())
    node = rng.choice(list(made.graph.node))
    kind = rng.random()
    if kind < 0.5 and node.attribute:
        item = rng.choice(list(node.attribute))
        if item.ints:
            item.ints[rng.randrange(len(item.ints))] = rng.choice((-1, 0, 1, 2, 7))
        elif item.type == onnx.AttributeProto.INT:
            item.i = rng.choice((-1, 0, 2, 5))
        else:
            item.name = rng.choice(("pads", "group", "nothing"))
    elif kind < 0.7:
        made.graph.node.remove(node)
    elif node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(("x", "", node.output[0], "nothing"))
    return made


def check(rng: random.Random) -> None:
    """One file."""
    model = _Maker(rng).model()
    if rng.random() < 0.33:
        model = _damaged(rng, model)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        path = folder / "net.onnx"
        onnx.save(model, path)
        with contextlib.suppress(*(() if _runs(path) else (cs.ConvSurgeonError,))):
            _convert(rng, path, folder)


def _runs(path: Path) -> bool:
    """Whether the checker accepts a file, and the runtime gives numbers for it; then it must not be refused."""
    try:
        onnx.checker.check_model(str(path))
        made = run(path, feed_of(path))
    except Exception:  # of both there are many kinds
        return False
    return all(bool(np.isfinite(one).all()) for one in made) and bool(onnx.load(path).graph.node)


def _convert(rng: random.Random, path: Path, folder: Path) -> None:
    kind = rng.choice((cs.CP, cs.SpatialSeparable, cs.DepthwiseSeparable, cs.Blueprint))
    how: dict[str, Any] = {"policy": cs.everything(), "allow_growth": True, "calibration": False}
    data = path.read_bytes()
    result = cs.convert(path, forms=[kind(rank=cs.Energy(1.0))], **how)
    cs.export_onnx(result.model, None, folder / "made.onnx")
    assert path.read_bytes() == data
    feed = feed_of(path, seed=rng.randrange(1000))
    for wanted, found in zip(run(path, feed), run(folder / "made.onnx", feed), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * (np.abs(wanted).max(initial=0) + 1e-6))
    before, after = (onnx.load(one).graph for one in (path, folder / "made.onnx"))
    replaced = {output for site in result.changes for output in result.model.owners[site].outputs}
    kept = {node.SerializeToString() for node in after.node}
    for node in before.node:
        fixed = node.op_type in ("Constant", "Transpose")
        assert node.output[0] in replaced or fixed or node.SerializeToString() in kept
    convs = sum(node.op_type == "Conv" for node in before.node if any(proto.uses(before)[one] for one in node.output))
    assert convs <= sum(max(1, len(step.site.calls)) for step in result.plan.steps)
