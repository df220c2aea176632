"""ONNX files of random nodes: at full rank they compute the same, nothing else is touched, or they are refused.

A third of them is damaged afterwards: an attribute changed, a node taken out, an input put elsewhere, bytes changed.
Every file is opened, run beside the runtime, and written back with every conv rewritten at full rank; one in twenty
goes the whole road, through `convert` and `export`.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto
from torch import nn

import convsurgeon as cs
from convsurgeon.base.errors import ConvSurgeonError
from convsurgeon.forms.geometry import Geometry
from convsurgeon.graph.model_files import open_model
from convsurgeon.onnx.parity import limits_of
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.convs import CONVS
from convsurgeon.onnxnet.network import OnnxNetwork
from convsurgeon.onnxnet.source_file import read_source
from convsurgeon.onnxnet.write import save_network
from tests.fuzz.files import MEMORY
from tests.fuzz.makers import Maker
from tests.growing import convert_growing
from tests.onnxnet.files import Array, feed_for, nothing_else_touched, plain, session_of

FORMS: tuple[Any, ...] = (cs.CP, cs.DepthwiseSeparable, cs.Blueprint)
WHOLE = 0.05
"""Share of the files that go through `convert` and `export`."""


def damaged(rng: random.Random, model: ModelProto) -> ModelProto:
    """With one thing changed."""
    made = ModelProto.FromString(model.SerializeToString())
    node = rng.choice(list(made.graph.node))
    kind = rng.random()
    if kind < 0.4 and node.attribute:
        _attribute(rng, rng.choice(list(node.attribute)))
    elif kind < 0.5:
        made.graph.node.remove(node)
    elif kind < 0.65 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(("x", "", node.output[0], "nothing"))
    elif kind < 0.72 and made.graph.initializer:
        _tensor(rng, rng.choice(list(made.graph.initializer)))
    elif kind < 0.78:
        made.opset_import[0].version = rng.choice((0, 6, 7, 9, 13, 18, 99))
    elif kind < 0.83:
        node.op_type = rng.choice(("Conv", "Relu", "Nothing", "ConvTranspose", "Add"))
    elif kind < 0.88:
        node.domain = rng.choice(("ai.onnx", "com.microsoft", "own"))
    elif kind < 0.93 and len(made.graph.node) > 1:
        other = made.graph.node[0]
        node.output[0] = other.output[0]
    else:
        (made.graph.output if rng.random() < 0.3 else made.graph.input).pop()
    return made


def _attribute(rng: random.Random, item: onnx.AttributeProto) -> None:
    if item.ints:
        item.ints[rng.randrange(len(item.ints))] = rng.choice((-1, 0, 1, 2, 7))
    elif item.type == onnx.AttributeProto.INT:
        item.i = rng.choice((1, 7, 99) if item.name == "to" else (-1, 0, 2, 5))  # a type 0 runs until it is looked at
    elif item.type == onnx.AttributeProto.STRING:
        item.s = rng.choice((b"", b"SAME_UPPER", b"\xff", b"nothing"))
    else:
        item.name = rng.choice(("pads", "group", "nothing"))


def _tensor(rng: random.Random, tensor: TensorProto) -> None:
    kind = rng.random()
    if kind < 0.3 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] += rng.choice((-1, 1))
    elif kind < 0.5:
        tensor.data_type = rng.choice((0, 1, 7, 10, 11, 99))
    elif kind < 0.7 and tensor.raw_data:
        tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
    elif kind < 0.9 and tensor.data_type == TensorProto.FLOAT and tensor.raw_data:
        values = np.frombuffer(tensor.raw_data, "f").copy()
        values[rng.randrange(len(values)) :] = rng.choice((np.nan, np.inf, 0, 1e30, 1e-40))
        tensor.raw_data = values.tobytes()
    else:
        tensor.name = rng.choice(("", "x", "renamed"))


def _bytes_changed(rng: random.Random, data: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        place = rng.randrange(len(made))
        kind = rng.random()
        if kind < 0.6:
            made[place] = rng.randrange(256)
        elif kind < 0.8:
            del made[place : place + rng.choice((1, 4, 200))]
        else:
            made[place:place] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 4)))
        if not made:
            break
    return bytes(made)


def prepare() -> None:
    """One file through the whole road, so that what that loads is loaded before workers are forked."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        path = Path(name) / "net.onnx"
        onnx.save(plain(), path)
        _whole(path, cs.CP(rank=cs.Energy(1.0)), Path(name) / "made.onnx")


def check(rng: random.Random) -> None:
    """One file."""
    maker = Maker(rng)
    model, harm = maker.model(), rng.random()
    if harm < 0.28 and model.graph.node:
        model = damaged(rng, model)
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder, path = Path(name), Path(name) / "net.onnx"
        if harm > 0.94:
            onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
        else:
            path.write_bytes(model.SerializeToString())
        if bites := 0.28 <= harm < 0.33:
            path.write_bytes(_bytes_changed(rng, path.read_bytes()))
        if _deadly(path):
            return
        truth = Truth.of(path, maker.size)
        kept = {one.name: one.read_bytes() for one in folder.iterdir()}
        try:
            _judged(rng, path, folder / "made.onnx", truth)
        except ConvSurgeonError:
            old = truth is not None and proto.opset_of(onnx.load(path, load_external_data=False)) < 7
            if truth is not None and not old and not bites and Truth.of(path, maker.size, optimised=False):
                raise  # refused for no reason
        assert all((folder / name).read_bytes() == data for name, data in kept.items()), "the file was changed"


def _deadly(path: Path) -> bool:
    """Whether a file is refused because the runtime itself might not survive it."""
    try:
        read_source(path)
    except ConvSurgeonError as error:
        return "lacks an input" in str(error)
    return False


@dataclass(frozen=True)
class Truth:
    """What the runtime makes of a file on some inputs, where the checker accepts it and all of it is numbers.

    The first two are of the example's size, the third of three images that are larger, where the file takes them.
    """

    feeds: list[dict[str, Array]]
    outputs: list[list[Array]]

    @staticmethod
    def of(path: Path, size: Sequence[int], optimised: bool = True) -> Truth | None:
        """None where there is none; other files must not be refused."""
        try:
            onnx.checker.check_model(str(path))
            session = session_of(path, optimised)
            feeds = [feed_for(session, seed, (1, 0, *size)) for seed in (0, 1)]
            made = [list(session.run(None, feed)) for feed in feeds]
        except Exception:  # of the checker's and the runtime's there are many kinds
            return None
        with contextlib.suppress(Exception):  # a size that does not go through the graph
            more = feed_for(session, 2, (3, 0, *(one + 1 for one in size)))
            made.append(list(session.run(None, more)))
            feeds.append(more)
        values = [one for outputs in made for one in outputs]
        finite = all(isinstance(one, np.ndarray) and bool(np.isfinite(one.astype(float)).all()) for one in values)
        return Truth(feeds, made) if finite and onnx.load(path).graph.node else None

    @property
    def example(self) -> dict[str, torch.Tensor]:
        """The first of them."""
        return _tensors(self.feeds[0])


def _judged(rng: random.Random, path: Path, made: Path, truth: Truth | None) -> None:
    """Opened, rewritten and written back."""
    form = rng.choice(FORMS)(rank=cs.Energy(1.0))
    if rng.random() < WHOLE:
        network, changed = _whole(path, form, made, truth)
    else:
        network, changed = _rewritten(path, form, truth)
        save_network(network, made)
    if truth is not None:
        session = session_of(made)
        for feed, wanted in zip(truth.feeds, truth.outputs, strict=True):
            _right(path, feed, list(session.run(None, feed)), wanted, "the written file", limits_of(network)[0])
    nothing_else_touched(path, made, {output for site in changed for output in network.file_conv(site).sizes})


def _whole(path: Path, form: Any, made: Path, truth: Truth | None = None) -> tuple[OnnxNetwork, list[str]]:
    """As a user does it; every conv that somebody reads is accounted for."""
    how: dict[str, Any] = {"policy": cs.select.everything(), "calibration": False}
    example = None if truth is None else truth.example
    result = convert_growing(path, example, forms=[form], progress=False, **how)
    cs.onnx.export(result.model, example, made)
    graph = onnx.load(path).graph
    used = proto.uses(graph)
    convs = sum(node.op_type in CONVS and any(used[one] for one in node.output) for node in graph.node)
    assert convs <= sum(max(1, len(step.site.calls)) for step in result.plan.steps), "a conv is not accounted for"
    assert isinstance(result.model, OnnxNetwork)
    return result.model, list(result.changes)


def _rewritten(path: Path, form: Any, truth: Truth | None) -> tuple[OnnxNetwork, list[str]]:
    """The file's network beside the runtime, then with every conv in a form that fits."""
    network, _ = open_model(path, None if truth is None else truth.example)
    assert isinstance(network, OnnxNetwork)
    for feed, wanted in zip(truth.feeds[:2], truth.outputs[:2], strict=True) if truth is not None else ():
        with torch.no_grad():
            found = network(**_tensors(feed))
        arrays = [one.numpy() for one in (found if isinstance(found, tuple) else (found,))]
        _right(path, feed, arrays, wanted, "the network in torch", limits_of(network)[0])
    changed = []
    for name in network.file_convs:
        conv = network.get_submodule(name)
        if not isinstance(conv, nn.Conv2d):
            continue
        geometry = Geometry.of(conv)
        if form.check(geometry) is None and bool((conv.weight.abs() < 1e9).all()):
            _put(network, name, _formed(form, geometry, conv))
            changed.append(name)
    return network, changed


def _formed(form: Any, geometry: Geometry, conv: nn.Conv2d) -> nn.Module:
    weight = conv.weight.detach()
    settled = form.settle(geometry, weight)
    made: nn.Module = settled.build(geometry, weight.device, weight.dtype)
    settled.fill(made, geometry, weight, None if conv.bias is None else conv.bias.detach())
    return made


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    folder, _, last = name.rpartition(".")
    setattr(network.get_submodule(folder), last, module)


def _tensors(feed: dict[str, Array]) -> dict[str, torch.Tensor]:
    """As a network in torch takes them: half precision as float32."""
    singles = {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in feed.items()}
    return {name: torch.from_numpy(array) for name, array in singles.items()}


def _same(found: list[Array], wanted: list[Array], what: str, limit: float) -> None:
    """To a share of the largest value: what parity allows, 1e-4, in half precision 3e-2."""
    assert len(found) == len(wanted), what
    for one, two in zip(found, wanted, strict=True):
        assert one.shape == two.shape, f"{what}: shapes {one.shape} {two.shape}"
    wrong = _apart(found, wanted)
    assert wrong <= limit, f"{what} is wrong by {wrong:.1e}"


def _right(
    path: Path, feed: dict[str, Array], found: list[Array], wanted: list[Array], what: str, limit: float
) -> None:
    """`_same`, or no further off than ten times what rounding the inputs does to the file's own outputs."""
    alike = [one.shape for one in found] == [one.shape for one in wanted]
    if alike and _apart(found, wanted) > limit:
        limit = max(limit, 10 * _shaken(path, feed, wanted))
    _same(found, wanted, what, limit)


def _apart(found: list[Array], wanted: list[Array]) -> float:
    """Largest error over the largest value, of the worst output."""
    pairs = [(one.astype(float), two.astype(float)) for one, two in zip(found, wanted, strict=True) if two.size]
    return max((float(np.abs(one - two).max() / (np.abs(two).max() + 1e-6)) for one, two in pairs), default=0.0)


def _shaken(path: Path, feed: dict[str, Array], wanted: list[Array]) -> float:
    """How far the outputs move when the inputs do by a millionth, in half precision by a thousandth.

    A norm of next to nothing enlarges that, and so does a softmax of values in the thousands.
    """
    random = np.random.default_rng(0)
    moved = {}
    for name, one in feed.items():
        size = 1e-3 if one.dtype == np.float16 else 1e-6
        moved[name] = (one * (1 + size * random.standard_normal(one.shape))).astype(one.dtype)
    return _apart(list(session_of(path).run(None, moved)), wanted)
