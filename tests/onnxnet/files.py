"""Small ONNX files, each with a trick or two, made with onnx's own helpers: what exporters of all kinds may write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.prelu import rewrite_prelu
from convsurgeon.onnxnet.rows import put_in_rows

Array = npt.NDArray[Any]
SIZE = 9


class Graph:
    """A graph in the making; weights come from one seed."""

    def __init__(self, opset: int = 18, ir: int = 8, dtype: Any = np.float32) -> None:
        self.opset, self.ir, self.dtype = opset, ir, dtype
        self.random = np.random.default_rng(0)
        self.nodes: list[NodeProto] = []
        self.stored: list[TensorProto] = []

    def weight(self, name: str, *shape: int, scale: float = 0.0) -> str:
        """Stores noise that keeps the size of what goes through it."""
        fan = int(np.prod(shape[1:])) or 1
        values = self.random.standard_normal(shape) * (scale or 1 / np.sqrt(fan))
        return self.const(name, values.astype(self.dtype))

    def const(self, name: str, values: Any) -> str:
        """Stores an array."""
        self.stored.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str, name: str = "", **attributes: Any) -> str:
        """Adds a node of one output."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name, **attributes))
        return output

    def conv(self, x: str, output: str, name: str, c: int, o: int, k: int = 3, bias: bool = True, **more: Any) -> str:
        """Adds a conv with weights of its own."""
        group = more.get("group", 1)
        inputs = [x, self.weight(f"{name}.weight", o, c // group, k, k)]
        if bias:
            inputs.append(self.weight(f"{name}.bias", o, scale=0.1))
        return self.node("Conv", inputs, output, name, **{"kernel_shape": [k, k], **more})

    def model(self, output: str = "y", inputs: Sequence[tuple[str, Sequence[Any]]] = (), **more: Any) -> ModelProto:
        """The whole; one image of 4 channels goes in by default."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        ends = [
            helper.make_tensor_value_info(name, more.get("types", {}).get(name, kind), shape)
            for name, shape in inputs or [("x", [1, 4, SIZE, SIZE])]
        ]
        if self.ir < 4:
            ends += [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in self.stored]
        outs = [helper.make_tensor_value_info(output, more.get("gives", kind), None)]
        graph = helper.make_graph(self.nodes, "net", ends, outs, self.stored, doc_string="a graph")
        own = more.get("functions", [])
        domains = [helper.make_opsetid("", self.opset), *[helper.make_opsetid("own", 1)] * bool(own)]
        how = {"opset_imports": domains, "ir_version": self.ir, "producer_name": "tests", "functions": own}
        made = helper.make_model(graph, **how)
        made.metadata_props.add(key="author", value="somebody")
        ranks = proto.ranks(onnx.shape_inference.infer_shapes(made).graph)
        rank = more.get("rank", ranks.get(output, 4))
        made.graph.output[0].CopyFrom(
            helper.make_tensor_value_info(output, outs[0].type.tensor_type.elem_type, [None] * rank)
        )
        return made


def plain(opset: int = 18, ir: int = 8, dtype: Any = np.float32) -> ModelProto:
    """Stem, a conv in a residual block, one with a stride, a head."""
    graph = Graph(opset, ir, dtype)
    graph.conv("x", "a", "stem", 4, 8, pads=[1] * 4)
    graph.node("Relu", ["a"], "b", "relu")
    graph.conv("b", "c", "body.conv", 8, 8, pads=[1] * 4)
    graph.node("Add", ["c", "b"], "d", "add")
    graph.conv("d", "e", "down", 8, 12, strides=[2, 2], pads=[1] * 4, bias=False)
    graph.node(*(("Relu", ["e"], "f", "leaky") if dtype == np.float64 else ("LeakyRelu", ["e"], "f", "leaky")))
    graph.node("GlobalAveragePool", ["f"], "g", "pool")
    graph.node("Flatten", ["g"], "y", "flat")
    return graph.model()


def padded(word: str, stride: int, k: int = 3, dilation: int = 1) -> ModelProto:
    """`auto_pad` in all its words."""
    graph = Graph(13)
    how = {"strides": [stride, stride], "dilations": [dilation, dilation], "auto_pad": word}
    graph.conv("x", "a", "conv", 4, 8, k, **how)
    graph.node("Relu", ["a"], "b", "relu")
    graph.conv("b", "y", "second", 8, 8, k, bias=False, **how)
    return graph.model()


def asymmetric(pads: Sequence[int], k: int = 3) -> ModelProto:
    """Another margin on every side."""
    graph = Graph(11)
    graph.conv("x", "a", "conv", 4, 8, k, pads=list(pads))
    graph.conv("a", "y", "second", 8, 8, k, pads=list(pads), bias=False, strides=[2, 1])
    return graph.model()


def one_by_three() -> ModelProto:
    """A margin along an axis on which there is no window."""
    graph = Graph(13)
    weight = graph.weight("w", 8, 4, 1, 3)
    graph.node("Conv", ["x", weight], "y", "conv", kernel_shape=[1, 3], pads=[1, 0, 0, 1])
    return graph.model()


def grouped() -> ModelProto:
    """Groups, and channels by themselves."""
    graph = Graph()
    graph.conv("x", "a", "grouped", 4, 8, group=2, pads=[1] * 4)
    graph.conv("a", "b", "depthwise", 8, 8, group=8, pads=[1] * 4)
    graph.conv("b", "y", "point", 8, 4, 1)
    return graph.model()


def shared() -> ModelProto:
    """One conv twice; the same weight in another conv; the same weight and no bias."""
    graph = Graph()
    weight, bias = graph.weight("w", 4, 4, 3, 3), graph.weight("b", 4, scale=0.1)
    graph.node("Conv", ["x", weight, bias], "a", "first", pads=[1] * 4)
    graph.node("Relu", ["a"], "b1", "relu")
    graph.node("Conv", ["b1", weight, bias], "c", "again", pads=[1] * 4)
    graph.node("Conv", ["c", weight, bias], "d", "dilated", pads=[2] * 4, dilations=[2, 2])
    graph.node("Conv", ["d", weight], "e", "bare", pads=[1] * 4)
    graph.node("Mul", ["e", "e"], "y", "square")
    return graph.model()


def computed() -> ModelProto:
    """Weights as Constant nodes, transposed, in half precision, and behind an Identity."""
    graph = Graph(13)
    values = (graph.random.standard_normal((3, 3, 4, 8)) / 6).astype(np.float32)
    graph.node("Constant", [], "w1", "constant", value=numpy_helper.from_array(values))
    graph.node("Transpose", ["w1"], "w2", "turn", perm=[3, 2, 0, 1])
    graph.node("Conv", ["x", "w2"], "a", "conv", pads=[1] * 4)
    graph.const("half", (graph.random.standard_normal((8, 8, 3, 3)) / 8).astype(np.float16))
    graph.node("Cast", ["half"], "w3", "cast", to=TensorProto.FLOAT)
    graph.node("Identity", [graph.weight("bias", 8, scale=0.1)], "b3", "same")
    graph.node("Conv", ["a", "w3", "b3"], "y", "conv2", pads=[1] * 4)
    return graph.model()


def nameless() -> ModelProto:
    """No node has a name, weights have odd ones."""
    graph = Graph()
    graph.node("Conv", ["x", graph.weight("forward", 4, 4, 3, 3)], "a b/c", pads=[1] * 4)
    graph.node("Conv", ["a b/c", graph.weight("forward.1", 4, 4, 3, 3)], "é", pads=[1] * 4)
    graph.node("Conv", ["é", graph.weight("modules.weight", 4, 4, 3, 3)], "y", pads=[1] * 4)
    return graph.model()


def branches() -> ModelProto:
    """An If with a conv in each branch, that reads values from outside."""
    graph = Graph(13)
    graph.conv("x", "a", "stem", 4, 4, pads=[1] * 4)
    weight = graph.weight("inner", 4, 4, 3, 3)
    inner = []
    for name in ("yes", "no"):
        conv = helper.make_node("Conv", ["a", weight], [name], f"{name}_conv", pads=[1] * 4)
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        inner.append(helper.make_graph([conv], name, [], [info]))
    graph.node("ReduceSum", ["a"], "s", "sum", keepdims=0)
    graph.node("Greater", ["s", graph.const("zero", np.float32(0))], "big", "greater")
    graph.nodes.append(helper.make_node("If", ["big"], ["c"], "choose", then_branch=inner[0], else_branch=inner[1]))
    graph.conv("c", "y", "last", 4, 4, pads=[1] * 4)
    return graph.model()


def looped() -> ModelProto:
    """A Loop that calls a conv again and again."""
    graph = Graph(13)
    graph.conv("x", "a", "stem", 4, 4, pads=[1] * 4)
    weight = graph.weight("inner", 4, 4, 3, 3)
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["v", weight], ["v2"], "loop_conv", pads=[1] * 4),
            helper.make_node("Identity", ["go"], ["go2"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 4, SIZE, SIZE]),
        ],
        [
            helper.make_tensor_value_info("go2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, [1, 4, SIZE, SIZE]),
        ],
    )
    times, go = graph.const("times", np.int64(2)), graph.const("go0", np.bool_(True))
    graph.nodes.append(helper.make_node("Loop", [times, go, "a"], ["c"], "loop", body=body))
    graph.conv("c", "y", "last", 4, 4, pads=[1] * 4)
    return graph.model()


def recurrent() -> ModelProto:
    """What torch has another word for: an LSTM, a TopK, a Resize by thirds."""
    graph = Graph(13)
    graph.conv("x", "a", "stem", 4, 6, pads=[1] * 4)
    sizes = graph.const("sizes", np.array([1, 6, 6, 6], dtype=np.int64))
    graph.node("Resize", ["a", "", "", sizes], "b", "resize", mode="cubic", cubic_coeff_a=-0.5)
    graph.conv("b", "c", "body", 6, 6, pads=[1] * 4)
    graph.node("ReduceMean", ["c"], "d", "mean", axes=[3], keepdims=0)
    graph.node("Transpose", ["d"], "e", "turn", perm=[2, 0, 1])
    weights = [graph.weight("W", 1, 20, 6), graph.weight("R", 1, 20, 5), graph.weight("B", 1, 40)]
    graph.node("LSTM", ["e", *weights], "f", "lstm", hidden_size=5)
    graph.const("k", np.array([2], dtype=np.int64))
    graph.nodes.append(helper.make_node("TopK", ["f", "k"], ["y", "where"], "top"))
    return graph.model()


def sequence() -> ModelProto:
    """A value that is no tensor, between a conv and a conv."""
    graph = Graph(13)
    graph.conv("x", "a", "stem", 4, 4, pads=[1] * 4)
    graph.node("SequenceConstruct", ["a", "a"], "s", "pair")
    graph.node("SequenceAt", ["s", graph.const("one", np.int64(1))], "b", "at")
    graph.conv("b", "y", "last", 4, 4, pads=[1] * 4)
    return graph.model()


def other_convs() -> ModelProto:
    """Of one and three dimensions, transposed, and one whose weight is computed."""
    graph = Graph(13)
    graph.conv("x", "a", "dense", 4, 4, pads=[1] * 4)
    graph.node("ConvTranspose", ["a", graph.weight("up", 4, 4, 2, 2)], "b", "up", strides=[2, 2])
    graph.const("line", np.array([1, 4, -1], dtype=np.int64))
    graph.node("Reshape", ["b", "line"], "c", "flat")
    graph.node("Conv", ["c", graph.weight("w1", 4, 4, 3)], "d", "conv1d", pads=[1, 1])
    graph.const("cube", np.array([1, 4, 3, 6, 18], dtype=np.int64))
    graph.node("Reshape", ["d", "cube"], "e", "cubed")
    graph.node("Conv", ["e", graph.weight("w3", 4, 4, 3, 3, 3)], "f", "conv3d", pads=[1] * 6)
    graph.const("image", np.array([1, 4, 18, 18], dtype=np.int64))
    graph.node("Reshape", ["f", "image"], "g", "flat2")
    graph.node("Mul", [graph.weight("wx", 4, 4, 3, 3), "scale"], "made", "scaled")
    graph.node("Conv", ["g", "made"], "y", "dynamic", pads=[1] * 4)
    return graph.model(inputs=[("x", [1, 4, SIZE, SIZE]), ("scale", [1])])


def transposed(opset: int = 13, dtype: Any = np.float32) -> ModelProto:
    """Down once and up twice: in groups, and with another margin at the end; one of one step."""
    graph = Graph(opset, dtype=dtype)
    graph.conv("x", "a", "down", 4, 8, strides=[2, 2], pads=[1] * 4)
    wide = ["a", graph.weight("up.weight", 8, 4, 4, 4), graph.weight("up.bias", 8, scale=0.1)]
    graph.node("ConvTranspose", wide, "b", "up", strides=[2, 2], pads=[1] * 4, group=2)
    graph.node("Relu", ["b"], "c", "relu")
    graph.node(
        "ConvTranspose", ["c", graph.weight("w", 8, 4, 3, 3)], "d", "again", strides=[2, 2], auto_pad="SAME_UPPER"
    )
    graph.node("ConvTranspose", ["d", graph.weight("v", 4, 4, 3, 3)], "y", "even", pads=[1] * 4)
    return graph.model()


def normed(opset: int = 13) -> ModelProto:
    """Batch norms that nobody has folded, gates, PReLU, pools of both kinds, a split."""
    graph = Graph(opset)
    value = graph.conv("x", "c0", "conv0", 4, 8, bias=False, pads=[1] * 4)
    for index, gate in enumerate(("Sigmoid", "HardSigmoid", "PRelu")):
        parts = [graph.weight(f"n{index}.{part}", 8, scale=0.5) for part in ("scale", "shift", "mean")]
        spread = graph.const(f"n{index}.var", graph.random.uniform(0.5, 2, 8).astype(np.float32))
        normal = graph.node("BatchNormalization", [value, *parts, spread], f"n{index}", f"norm{index}")
        if gate == "PRelu":
            slope = graph.weight("slope", 8, 1, 1, scale=0.2)
            value = graph.node("PRelu", [normal, slope], f"g{index}", "prelu")
        else:
            more = {"alpha": 1 / 6, "beta": 0.5} if gate == "HardSigmoid" else {}
            gated = graph.node(gate, [normal], f"s{index}", f"gate{index}", **more)
            value = graph.node("Mul", [normal, gated], f"g{index}", f"product{index}")
        value = graph.conv(value, f"c{index + 1}", f"conv{index + 1}", 8, 8, bias=index > 0, pads=[1] * 4)
    pools = {"kernel_shape": [3, 3], "strides": [2, 2]}
    graph.node("MaxPool", [value], "m", "max", auto_pad="SAME_UPPER", **pools)
    graph.node("AveragePool", [value], "v", "average", pads=[1, 1, 1, 1], **pools)
    graph.node("Concat", ["m", "v"], "j", "joined", axis=1)
    graph.nodes.append(helper.make_node("Split", ["j"], ["p", "q"], "split", axis=1))
    graph.node("Mul", ["p", "q"], "y", "last")
    return graph.model()


def quantised(kind: str) -> ModelProto:
    """A conv of whole numbers."""
    graph = Graph(13)
    graph.const("scale", np.float32(0.1))
    graph.const("zero", np.uint8(3))
    graph.nodes.append(helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantise"))
    if kind == "QDQ":
        graph.node("DequantizeLinear", ["q", "scale", "zero"], "d", "dequantise")
        graph.conv("d", "y", "conv", 4, 4)
        return graph.model()
    weight = graph.const("w", graph.random.integers(0, 9, (4, 4, 3, 3)).astype(np.uint8))
    if kind == "ConvInteger":
        graph.node("ConvInteger", ["q", weight, "zero"], "y", "conv")
        return graph.model(gives=TensorProto.INT32)
    graph.node("QLinearConv", ["q", "scale", "zero", weight, "scale", "zero", "scale", "zero"], "y", "conv")
    return graph.model(gives=TensorProto.UINT8)


FILES: dict[str, Callable[[], ModelProto]] = {
    "plain": plain,
    "opset 7, IR 3": lambda: plain(7, 3),
    "opset 9": lambda: plain(9, 4),
    "opset 22": lambda: plain(22, 10),
    "half": lambda: plain(dtype=np.float16),
    "SAME_UPPER 1": lambda: padded("SAME_UPPER", 1),
    "SAME_UPPER 2": lambda: padded("SAME_UPPER", 2),
    "SAME_LOWER 2": lambda: padded("SAME_LOWER", 2),
    "VALID 1": lambda: padded("VALID", 1),
    "SAME_UPPER even": lambda: padded("SAME_UPPER", 1, 4),
    "asymmetric": lambda: asymmetric([0, 1, 2, 0]),
    "asymmetric even": lambda: asymmetric([1, 1, 0, 0], 2),
    "no window there": one_by_three,
    "grouped": grouped,
    "shared": shared,
    "computed": computed,
    "nameless": nameless,
    "branches": branches,
    "looped": looped,
    "recurrent": recurrent,
    "sequence": sequence,
    "other convs": other_convs,
    "transposed": transposed,
    "transposed, opset 9": lambda: transposed(9),
    "transposed, half": lambda: transposed(dtype=np.float16),
    "normed": normed,
    "normed, opset 9": lambda: normed(9),
}


def saved(model: ModelProto, folder: Path, name: str = "net.onnx", **more: Any) -> Path:
    """Writes a model that the checker accepts."""
    path = folder / name
    onnx.save(model, path, **more)
    onnx.checker.check_model(str(path))
    return path


def feed_of(path: Path, seed: int = 0) -> dict[str, Array]:
    """Noise for a file whose sizes are fixed."""
    return feed_for(session_of(path), seed)


def feed_for(session: Any, seed: int = 0, sizes: Sequence[int] = ()) -> dict[str, Array]:
    """Noise for a session of a file, its open sizes as they are given, axis by axis, or 1."""
    random = np.random.default_rng(seed)
    types = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
    return {
        one.name: random.standard_normal(
            [size if isinstance(size, int) else [*sizes, *[1] * 9][axis] for axis, size in enumerate(one.shape)]
        ).astype(types[one.type])
        for one in session.get_inputs()
    }


def run(path: Path, feed: dict[str, Array]) -> list[Array]:
    """What onnxruntime makes of a file."""
    return list(session_of(path).run(None, feed))


def session_of(path: Path, optimised: bool = True) -> Any:
    """Of onnxruntime, with one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def nothing_else_touched(path: Path, made: Path, replaced: Collection[str]) -> None:
    """Asserts that a file is another one but for some of its convs, and what only they read.

    Args:
        path: the original.
        made: what came of it.
        replaced: outputs of the convs that are others now.
    """
    before, after = onnx.load(path), onnx.load(made)
    if made.read_bytes() != path.read_bytes():
        put_in_rows(before.graph, proto.opset_of(before))
        rewrite_prelu(before)
    spare = _spare(before.graph, replaced)
    left = [
        node.SerializeToString()
        for node in before.graph.node
        if not replaced.intersection(node.output[:1]) and not (node.output and spare.issuperset(node.output))
    ]
    rest = Counter(left)
    kept = []
    for node in after.graph.node:
        data = node.SerializeToString()
        if rest[data]:
            kept.append(data)
            rest[data] -= 1
    assert kept == left, "another node was touched"
    old, new = ({one.name: one.SerializeToString() for one in model.graph.initializer} for model in (before, after))
    assert all(new.get(name) == data for name, data in old.items() if name not in spare), "a weight was touched"
    assert not spare.intersection(new), "a weight that nobody reads was left"
    used = proto.uses(after.graph)
    assert all(used[name] for name in new if name not in old), "a weight that nobody reads was added"
    _same_shell(before, after, spare | (set(new) - set(old)))


def _spare(graph: GraphProto, replaced: Collection[str]) -> set[str]:
    """What only the weights of some convs were for."""
    used = proto.uses(graph)
    waiting = []
    for node in graph.node:
        if node.output and node.output[0] in replaced:
            waiting += [name for name in node.input[1:] if name]
            used.subtract(node.input[1:])
    found: set[str] = set()
    makers = proto.producers(graph)
    while waiting:
        name = waiting.pop()
        maker = makers.get(name)
        if used[name] > 0 or name in found or (maker and any(used[one] > 0 for one in maker.output)):
            continue
        found.add(name)
        if maker is not None:
            found.update(maker.output)
            used.subtract(maker.input)
            waiting += [one for one in maker.input if one]
    return found


def _same_shell(before: ModelProto, after: ModelProto, others: Collection[str]) -> None:
    for model in (before, after):
        del model.graph.node[:], model.graph.initializer[:]
        for infos in (model.graph.input, model.graph.value_info):
            kept = [info for info in infos if info.name not in others]
            del infos[:]
            infos.extend(kept)
    assert before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
