"""ONNX graphs of random nodes with attributes of every kind, as exporters and people write them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.onnxnet.files import Array, Graph

_UNARY: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("Relu", {}), ("Relu", {}), ("LeakyRelu", {"alpha": 0.2}), ("Sigmoid", {}), ("Tanh", {}), ("HardSigmoid", {})),
    *(("Elu", {}), ("Softplus", {}), ("Identity", {}), ("Neg", {}), ("Abs", {}), ("Softmax", {"axis": 1})),
    *(("HardSigmoid", {"alpha": 1 / 6}), ("Selu", {}), ("Erf", {}), ("Exp", {}), ("Softsign", {}), ("HardSwish", {})),
    *(("Softmax", {}), ("LogSoftmax", {"axis": -1}), ("Sin", {}), ("Mish", {}), ("Gelu", {"approximate": "tanh"})),
    *(("Celu", {"alpha": 0.7}), ("Dropout", {}), ("LpNormalization", {"axis": 1}), ("Cos", {}), ("Sinh", {})),
    *(("GlobalAveragePool", {}), ("GlobalMaxPool", {}), ("Softmax", {"axis": 2}), ("Gelu", {}), ("Atan", {})),
)
_ODD = (
    "x y",
    "é",
    "..",
    ".",
    "/",
    "a..b",
    "self",
    "forward",
    "weight",
    "ports",
    "owners",
    "0",
    "a/b.c:0",
    "\u202e",
    "'\"\\",
    "x" * 300,
)
_OPSETS = (*range(7, 24), onnx.defs.onnx_opset_version())


class Maker:
    """One graph; every value is (name, channels), with a batch before the channels and sizes behind them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        opset = rng.choice(_OPSETS)
        self.half = rng.random() < 0.06
        self.graph = Graph(
            opset, ir=rng.choice((3, 4, 8)) if opset < 15 else 8, dtype=np.float16 if self.half else np.float32
        )
        self.graph.random = np.random.default_rng(rng.randrange(1 << 30))
        self.channels = rng.choice((1, 2, 3, 4, 6))
        self.batch = rng.choice((1, 1, 2))
        self.dims = rng.choice((2,) * 8 + (1, 3))
        self.size = [rng.randint(4, 12 if self.dims < 3 else 6) for _ in range(self.dims)]
        self.open: list[Any] = [f"size{axis}" for axis in range(self.dims)] if rng.random() < 0.3 else self.size
        self.values: list[tuple[str, int]] = [("x", self.channels)]
        self.count = 0
        self.kernels: list[tuple[str, int, int, Any]] = []
        self.functions: list[onnx.FunctionProto] = []

    # Names.

    def fresh(self) -> str:
        self.count += 1
        plain = (f"v{self.count}", f"block.{self.count}", f"/a/b{self.count}/out", f"v:{self.count}")
        odd = self.rng.choice(_ODD)
        known = {name for node in self.graph.nodes for name in node.output} | {one.name for one in self.graph.stored}
        return odd if self.rng.random() < 0.08 and odd not in known else self.rng.choice(plain)

    def name(self) -> str:
        """Of a node: none, a plain one, a path, one that means something in Python, now and then one that is taken."""
        number = self.count
        taken = self.rng.choice(("same", *_ODD)) if self.rng.random() < 0.2 else f"training.{number}"
        return self.rng.choice(
            ("", f"n{number}", f"/layer/conv{number}/Conv", f"é{number}", f"modules.{number}", taken)
        )

    def stored_name(self, wanted: str) -> str:
        known = {one.name for one in self.graph.stored} | {name for one in self.graph.nodes for name in one.output}
        return wanted if wanted not in known else f"{wanted}_{len(known)}"

    def pick(self) -> tuple[str, int]:
        return self.rng.choice(self.values[-3:])

    # Constants.

    def const(self, wanted: str, values: Array) -> str:
        """An array, stored in one of the ways in which a file may hold it, or computed from what is stored."""
        name, kind = self.stored_name(wanted), self.rng.random()
        if values.dtype.kind != "f" or kind < 0.5:
            return self.graph.const(name, values)
        if kind < 0.55:
            typed = helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape, values)
            self.graph.stored.append(typed)
            return name
        if kind < 0.65:
            return self.graph.node("Constant", [], name, self.name(), value=numpy_helper.from_array(values))
        ways = (self.turned, self.turned, self.cast, self.copied, self.scaled, self.listed)
        return self.rng.choice(ways)(name, values)

    def turned(self, name: str, values: Array) -> str:
        axes = list(range(values.ndim))
        self.rng.shuffle(axes)
        back = [axes.index(axis) for axis in range(values.ndim)]
        stored = self.graph.const(f"{name}.turned", np.ascontiguousarray(values.transpose(axes)))
        return self.graph.node("Transpose", [stored], name, perm=back)

    def cast(self, name: str, values: Array) -> str:
        kind = np.float16 if values.dtype == np.float32 else np.float32
        stored = self.graph.const(f"{name}.other", values.astype(kind))
        return self.graph.node("Cast", [stored], name, to=helper.np_dtype_to_tensor_dtype(values.dtype))

    def copied(self, name: str, values: Array) -> str:
        stored = self.graph.const(f"{name}.same", values)
        for place in range(self.rng.randint(0, 2)):
            stored = self.graph.node("Identity", [stored], f"{name}.same{place}")
        return self.graph.node("Identity", [stored], name, self.name())

    def scaled(self, name: str, values: Array) -> str:
        two = self.graph.const(f"{name}.two", np.full((1,) * values.ndim, 2, values.dtype))
        return self.graph.node("Mul", [self.graph.const(f"{name}.half", values / values.dtype.type(2)), two], name)

    def listed(self, name: str, values: Array) -> str:
        """A list of numbers in a Constant, reshaped."""
        if self.graph.opset < 12 or values.dtype != np.float32:
            return self.graph.const(name, values)
        line = self.graph.node("Constant", [], f"{name}.line", value_floats=values.reshape(-1).tolist())
        shape = self.graph.const(f"{name}.shape", np.array(values.shape, dtype=np.int64))
        return self.graph.node("Reshape", [line, shape], name)

    def noise(self, wanted: str, *shape: int, scale: float = 0.0) -> str:
        fan = math.prod(shape[1:]) or 1
        values = self.graph.random.standard_normal(shape) * (scale or 1 / math.sqrt(fan))
        return self.const(wanted, values.astype(self.graph.dtype))

    # Nodes.

    def put(self, kind: str, inputs: Sequence[str], channels: int, outputs: int = 1, **attributes: Any) -> None:
        own = [self.fresh() for _ in range(outputs)]
        made = helper.make_node(kind, list(inputs), own, self.name(), **attributes)
        self.graph.nodes.append(made)
        self.values.append((own[0], channels))

    def attributes(self, kernel: list[int], groups: int) -> dict[str, Any]:
        """Of a window: some of those that it may have."""
        rng, dims = self.rng, self.dims
        made: dict[str, Any] = {} if rng.random() < 0.2 else {"kernel_shape": kernel}
        if groups > 1 or rng.random() < 0.3:
            made["group"] = groups
        if rng.random() < 0.5:
            made["strides"] = [rng.choice((1, 1, 2, 3)) for _ in range(dims)]
        if rng.random() < 0.3:
            made["dilations"] = [rng.choice((1, 1, 2, 3)) for _ in range(dims)]
        padding = rng.random()
        if padding < 0.35:
            made["auto_pad"] = rng.choice(("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"))
            if rng.random() < 0.95:  # which the runtime has not together
                made.pop("dilations", None)
        elif padding < 0.8:
            made["pads"] = [rng.choice((0, 1, 1, 2, 3)) for _ in range(2 * dims)]
        elif padding < 0.9:
            made["pads"] = [rng.randint(0, 2)] * 2 * dims
        return made

    def conv(self) -> None:
        rng, (x, channels) = self.rng, self.pick()
        again = [one for one in self.kernels if one[1] == channels]
        if again and rng.random() < 0.25:
            weight, _, outputs, attributes = rng.choice(again)
            if rng.random() < 0.3 and "kernel_shape" in attributes:
                attributes = self.attributes(attributes["kernel_shape"], attributes.get("group", 1))
        else:
            groups = rng.choice([1, 1, 1, *(g for g in (2, 3, channels) if channels % g == 0)])
            outputs = groups * rng.choice((1, 2, 3))
            kernel = [rng.choice((1, 2, 3, 3, 5)) for _ in range(self.dims)]
            attributes = self.attributes(kernel, groups)
            wanted = rng.choice((f"w{self.count}", f"layer{self.count}.conv.weight", f"/l{self.count}/Constant_output"))
            weight = self.noise(wanted, outputs, channels // groups, *kernel)
            self.kernels.append((weight, channels, outputs, attributes))
        self.put("Conv", [x, weight, *self.bias(outputs)], outputs, **attributes)

    def bias(self, outputs: int) -> list[str]:
        """None, left out by an empty name, an own one, one of another conv, or zeros."""
        kind = self.rng.random()
        if kind < 0.4:
            return [] if kind < 0.33 else [""]
        known = [one.name for one in self.graph.stored if list(one.dims) == [outputs] and ".b" in one.name]
        if kind < 0.5 and known:
            return [self.rng.choice(known)]
        scale = 0.0 if kind < 0.6 else 1.0
        values = self.graph.random.standard_normal(outputs) * scale
        return [self.const(f"l{self.count}.bias", values.astype(self.graph.dtype))]

    def loose_conv(self) -> None:
        """A conv whose weight or bias depends on the input."""
        (x, channels), rng = self.pick(), self.rng
        outputs, kernel = rng.choice((1, 2)), [rng.choice((1, 2)) for _ in range(self.dims)]
        mean = self.graph.node("ReduceMean", [x], self.fresh(), keepdims=1) if rng.random() < 0.5 else ""
        weight = self.noise(f"w{self.count}", outputs, channels, *kernel)
        inputs = [x, weight]
        if mean:
            inputs[1] = self.graph.node("Mul", [weight, mean], self.fresh())
        else:
            every = self.graph.node("ReduceMean", [x], self.fresh(), keepdims=0)
            inputs.append(self.graph.node("Add", [self.noise(f"b{self.count}", outputs), every], self.fresh()))
        self.put("Conv", inputs, outputs)

    def transposed(self) -> None:
        x, channels = self.pick()
        rng, groups = self.rng, self.rng.choice([1, 1, *([2] if channels % 2 == 0 else [])])
        outputs, kernel = rng.choice((1, 2)), [rng.choice((1, 2, 3)) for _ in range(self.dims)]
        attributes = self.attributes(kernel, groups)
        weight = self.noise(f"up{self.count}", channels, outputs, *kernel)
        self.put("ConvTranspose", [x, weight, *self.bias(outputs * groups)], outputs * groups, **attributes)

    def unary(self) -> None:
        name, attributes = self.rng.choice(_UNARY)
        x, channels = self.pick()
        self.put(name, [x], channels, **attributes)

    def binary(self) -> None:
        (x, channels), (y, others) = self.pick(), self.rng.choice(self.values)
        kind = self.rng.choice(("Add", "Mul", "Concat", "Sub", "Max", "Sum", "Add"))
        more = {"axis": self.rng.choice((1, 1, 1, -self.dims - 1))} if kind == "Concat" else {}
        self.put(kind, [x, y], channels + others if kind == "Concat" else max(channels, others), **more)

    def pool(self) -> None:
        (x, channels), rng = self.pick(), self.rng
        attributes = self.attributes([rng.randint(1, 3) for _ in range(self.dims)], 1)
        attributes.pop("group", None)
        window = attributes.setdefault("kernel_shape", [2] * self.dims)
        if "pads" in attributes and rng.random() < 0.97:  # the runtime wants less than the window
            attributes["pads"] = [
                min(pad, window[place % self.dims] - 1) for place, pad in enumerate(attributes["pads"])
            ]
        which = rng.choice(("MaxPool", "AveragePool", "LpPool"))
        if which != "MaxPool" or self.graph.opset < 10:
            attributes.pop("dilations", None)
        if which == "AveragePool" and rng.random() < 0.5:
            attributes["count_include_pad"] = 1
        if rng.random() < 0.2 and self.graph.opset >= (10 if which != "LpPool" else 18):
            attributes["ceil_mode"] = 1
        self.put(which, [x], channels, 2 if which == "MaxPool" and rng.random() < 0.1 else 1, **attributes)

    def norm(self) -> None:
        (x, channels), rng = self.pick(), self.rng
        kind = rng.choice(("BatchNormalization", "BatchNormalization", "InstanceNormalization", "LayerNormalization"))
        if kind == "LayerNormalization" and self.graph.opset >= 17:
            self.put("LayerNormalization", [x, self.noise("ln", self.size[-1], scale=1.0)], channels)
            return
        names = "sbm" if kind == "BatchNormalization" else "sb"
        parts = [self.noise(f"n{self.count}.{part}", channels, scale=0.7) for part in names]
        if kind == "BatchNormalization":
            spread = self.graph.random.uniform(0.5, 2, channels).astype(self.graph.dtype)
            parts.append(self.const(f"n{self.count}.v", spread))
        more = {"epsilon": 1e-3} if rng.random() < 0.5 else {}
        self.put("InstanceNormalization" if len(parts) == 2 else kind, [x, *parts], channels, **more)

    def affine(self) -> None:
        x, channels = self.pick()
        shape = self.rng.choice(((1, channels), (channels,), (1, 1)))
        other = self.noise(f"a{self.count}", *shape, *[1] * self.dims, scale=1.0)
        kind = self.rng.choice(("Add", "Mul", "Sub", "PRelu", "Div"))
        inputs = [x, other] if kind in ("PRelu", "Div") or self.rng.random() < 0.7 else [other, x]
        self.put(kind, inputs, channels)

    def gate(self) -> None:
        x, channels = self.pick()
        more = self.rng.choice(({}, {"alpha": 1 / 6}))
        kind = self.rng.choice(("Sigmoid", "HardSigmoid"))
        gate = self.graph.node(kind, [x], self.fresh(), **(more if kind == "HardSigmoid" else {}))
        if self.rng.random() < 0.2:
            self.values.append((gate, channels))
        self.put("Mul", self.rng.sample([x, gate], 2), channels)

    def squeezed(self) -> None:
        """Squeeze and excitation."""
        x, channels = self.pick()
        mean = self.graph.node("GlobalAveragePool", [x], self.fresh())
        weight = self.noise(f"se{self.count}.weight", channels, channels, *[1] * self.dims)
        gate = self.graph.node("Conv", [mean, weight], self.fresh(), self.name())
        bounded = self.graph.node("Sigmoid", [gate], self.fresh())
        self.put("Mul", [x, bounded], channels)

    def shaped(self) -> None:
        """What moves values about."""
        (x, channels), rng, dims = self.pick(), self.rng, self.dims
        kind = rng.choice(
            ("turn", "pad", "clip", "cast", "split", "slice", "flat", "resize", "reduce", "lines", "again")
        )
        if kind == "turn":
            axes = list(range(2, dims + 2))
            rng.shuffle(axes)
            self.put("Transpose", [x], channels, perm=[0, 1, *axes])
        elif kind == "pad" and self.graph.opset >= 11:
            ends = [0, 0, *[rng.randint(-1, 2) for _ in range(dims)]]
            pads = self.graph.const(f"p{self.count}", np.array([*[0] * (dims + 2), *ends], dtype=np.int64))
            self.put("Pad", [x, pads], channels, mode=rng.choice(("constant", "reflect", "edge")))
        elif kind == "clip" and self.graph.opset >= 11:
            low, high = (self.graph.const(f"c{self.count}.{end}", self.graph.dtype(end)) for end in (-1, 6))
            self.put("Clip", [x, *rng.choice(([low, high], ["", high], [low], [], [low, ""]))], channels)
        elif kind == "cast":
            there = self.graph.node("Cast", [x], self.fresh(), to=rng.choice((1, 11)))
            self.put("Cast", [there], channels, to=helper.np_dtype_to_tensor_dtype(np.dtype(self.graph.dtype)))
        elif kind == "split" and channels % 2 == 0 and 2 <= self.graph.opset < 18:
            self.put("Split", [x], channels // 2, 2, axis=1)
        elif kind == "slice" and self.graph.opset >= 10:
            backwards = rng.random() < 0.2
            start, end, step = (-1, -(2**62), -1) if backwards else (rng.choice((0, 1, -3)), 2**62, rng.choice((1, 2)))
            parts = enumerate((start, end, rng.choice((2, -1)), step))
            stored = [self.graph.const(f"sl{self.count}.{i}", np.array([part], dtype=np.int64)) for i, part in parts]
            self.put("Slice", [x, *stored], channels)
        elif kind == "again":
            self.put("Reshape", [x, self.graph.node("Shape", [x], self.fresh())], channels)
        elif kind == "flat":
            shape = self.graph.const(f"sh{self.count}", np.array([0, channels, *[1] * (dims - 1), -1], dtype=np.int64))
            self.put("Reshape", [x, shape], channels)
        elif kind == "resize" and self.graph.opset >= 11:
            self.resized(x, channels)
        elif kind == "reduce" and self.graph.opset < 13:
            how = rng.choice(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceLogSumExp"))
            self.put(how, [x], channels, axes=[rng.choice((-1, 2))], keepdims=1)
        elif kind == "lines" and self.graph.opset >= 13:
            axes = self.graph.const(f"ax{self.count}", np.array([rng.choice((0, 2, -1))], dtype=np.int64))
            longer = self.graph.node("Unsqueeze", [x, axes], self.fresh())
            self.put("Squeeze", [longer, axes], channels)

    def resized(self, x: str, channels: int) -> None:
        rng = self.rng
        factors = [1, 1, *[rng.choice((1, 2, 0.5, 1.7)) for _ in range(self.dims)]]
        scales = self.graph.const(f"rs{self.count}", np.array(factors, dtype=np.float32))
        more: dict[str, Any] = {"mode": rng.choice(("nearest", "linear", "cubic"))}
        if rng.random() < 0.7:
            words = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
            more["coordinate_transformation_mode"] = rng.choice(words)
        if rng.random() < 0.5 and more["mode"] == "nearest":
            more["nearest_mode"] = rng.choice(("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"))
        self.put("Resize", [x, "", scales], channels, **more)

    def nested(self) -> None:
        """A conv in a graph inside of an If or a Loop, or in a function."""
        x, channels = self.pick()
        rng, kind = self.rng, helper.np_dtype_to_tensor_dtype(np.dtype(self.graph.dtype))
        weight = self.noise(f"in{self.count}", channels, channels, *[3] * self.dims)
        how = {"pads": [1] * 2 * self.dims}
        if rng.random() < 0.2:
            node = helper.make_node("Conv", ["a", "b"], ["c"], "inner", **how)
            opsets = [helper.make_opsetid("", self.graph.opset)]
            self.functions = [helper.make_function("own", "Block", ["a", "b"], ["c"], [node], opsets)]
            self.put("Block", [x, weight], channels, domain="own")
            return
        if rng.random() < 0.6:
            branches = []
            for name in ("yes", "no"):
                conv = helper.make_node("Conv", [x, weight], [f"{name}{self.count}"], f"{name}_conv", **how)
                info = helper.make_tensor_value_info(f"{name}{self.count}", kind, None)
                branches.append(helper.make_graph([conv], name, [], [info]))
            big = self.graph.const(f"if{self.count}", np.bool_(rng.random() < 0.5))
            self.put("If", [big], channels, then_branch=branches[0], else_branch=branches[1])
            return
        ends = [("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("v", kind, None)]
        outs = [("go2", TensorProto.BOOL, []), ("v2", kind, None)]
        body = helper.make_graph(
            [
                helper.make_node("Conv", ["v", weight], ["v2"], "loop_conv", **how),
                helper.make_node("Identity", ["go"], ["go2"]),
            ],
            "body",
            *([helper.make_tensor_value_info(*one) for one in group] for group in (ends, outs)),
        )
        times = self.graph.const(f"times{self.count}", np.int64(rng.randint(0, 2)))
        self.put("Loop", [times, self.graph.const(f"go{self.count}", np.bool_(True)), x], channels, body=body)

    # The whole.

    def step(self) -> None:
        """One more node, or a few."""
        kinds: tuple[tuple[Callable[[], None], int], ...] = (
            *((self.conv, 45), (self.unary, 12), (self.binary, 10), (self.pool, 5), (self.norm, 6), (self.affine, 5)),
            *((self.gate, 4), (self.shaped, 12), (self.squeezed, 2), (self.transposed, 3), (self.loose_conv, 1)),
            (self.nested, 2),
        )
        self.rng.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]()

    def model(self) -> ModelProto:
        """A graph of up to eight steps that fit, most of the time."""
        for _ in range(self.rng.randint(1, 8)):
            kept = [list(one) for one in (self.values, self.graph.nodes, self.graph.stored, self.kernels)]
            functions = self.functions
            self.step()
            if not _fits(self._made(self.batch)) and self.rng.random() < 0.98:
                self.values, self.graph.nodes, self.graph.stored, self.kernels = kept  # type: ignore[assignment]
                self.functions = functions
        return self._dressed(self._made(self.rng.choice((self.batch, self.batch, "n"))))

    def _made(self, batch: Any) -> ModelProto:
        ends = [("x", [batch, self.channels, *(self.open if batch == "n" else self.size)])]
        return self.graph.model(self.values[-1][0], inputs=ends, rank=self.dims + 2, functions=self.functions)

    def _dressed(self, model: ModelProto) -> ModelProto:
        """With what a graph may have besides: more outputs, shapes written down, weights that are inputs, too."""
        rng, graph = self.rng, model.graph
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.graph.dtype))
        for name in dict.fromkeys(rng.choice(self.values)[0] for _ in range(rng.choice((0, 0, 1, 3)))):
            if name not in [one.name for one in graph.output]:
                graph.output.append(helper.make_tensor_value_info(name, kind, [None] * (self.dims + 2)))
        if rng.random() < 0.03 and graph.initializer:
            one = rng.choice(list(graph.initializer))
            graph.output.append(helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)))
        if self.graph.ir >= 4 and rng.random() < 0.1:
            for one in list(graph.initializer):
                if rng.random() < 0.5:
                    graph.input.append(helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)))
        if rng.random() < 0.4:
            graph.value_info.extend(onnx.shape_inference.infer_shapes(model).graph.value_info)
            for info in list(graph.value_info):
                if rng.random() < 0.2:
                    graph.value_info.remove(info)
        if rng.random() < 0.1 and self.graph.ir > 3:
            graph.initializer.append(numpy_helper.from_array(np.ones(3, "f"), "nobody reads it"))
        return model


def _fits(model: ModelProto) -> bool:
    """Whether shapes go together as far as onnx can tell, and nothing is empty."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    except onnx.shape_inference.InferenceError:
        return False
    infos = (*graph.value_info, *graph.output)
    return all(dim.dim_value > 0 for info in infos for dim in info.type.tensor_type.shape.dim if not dim.dim_param)
