"""Weight files and ONNX files of damaged, cut and made-up bytes; a pickle in them must never run."""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from safetensors.torch import save

import convsurgeon as cs
from convsurgeon.graph.load import load_weights
from convsurgeon.onnxnet.measuring.files import FORMAT
from tests import nets

DEVICE: dict[str, Any] = {
    "convsurgeon_device": FORMAT,
    "machine": {"cpu": "a", "cores": 1, "system": "b", "onnxruntime": "c", "load": 0.0},
    "threads": 1,
    "network": "d",
    "model": "Shared",
    "example": "1x3x8x8",
    "sites": ["body"],
    "barred": {"stem": "a reason"},
    "pruned": [["body", "separable rank 4"]],
    "networks": {
        "dense": {
            "label": "dense",
            "forms": {},
            "nodes": [["Conv", "body", "body", -1], ["Relu", "", "body", 0], ["Gemm", "", "", -1]],
        },
        "one": {
            "label": "separable rank 1",
            "forms": {"body": {"form": "depthwise_separable", "rank": 1}},
            "nodes": [["Conv", "body", "body", -1], ["Conv", "body", "body", -1], ["Gemm", "", "", -1]],
        },
    },
    "samples": [
        {"pass": 0, "network": name, "total_ms": total, "dense_ms": 1.0, "wall_ms": total, "nodes": nodes}
        for name, total, nodes in (
            ("dense", 1.0, [["node-0_nchwc", "Conv", 0.8], ["node-2", "Gemm", 0.2]]),
            ("one", 0.3, [["node-0_nchwc", "Conv", 0.05], ["node-1_nchwc", "Conv", 0.05], ["node-2", "Gemm", 0.2]]),
        )
    ],
}
"""What the measuring script writes, of a network of one site."""

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where cases keep their files: a disk costs more than the rest of a case."""

ran: list[str] = []
"""What a pickle would write to if it were executed."""


class Bomb:
    """An object whose pickle runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ran.append, ("executed",)


@functools.cache
def _model() -> nets.Plain:
    torch.manual_seed(0)
    return nets.Plain().eval()


@functools.cache
def _originals() -> tuple[bytes, ...]:
    state = _model().state_dict()
    wrapped: list[Any] = [state, {"state_dict": state, "epoch": 3}, {"model": _model()}, {"bomb": Bomb()}, [1, 2]]
    files = [save(state)]
    for value in wrapped:
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
            files.append(buffer.getvalue())
    return (*files, pickle.dumps(Bomb()), pickle.dumps(state), b"", b"{}", b"\x93NUMPY")


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut out, doubled or put in; now and then none."""
    changed = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 8))):
        at = rng.randint(0, min(len(changed), rng.choice((16, 512, 10**9))))
        what = rng.random()
        if what < 0.4 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif what < 0.6:
            del changed[at : at + rng.choice((1, 8, 1000, 10**9))]
        else:
            changed[at:at] = rng.randbytes(rng.choice((1, 8, 100)))
    return bytes(changed)


def weights(rng: random.Random) -> None:
    """A weight file loads or is refused; nothing in it is executed; what loads is finite in number and shape."""
    model = nets.Plain()
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder) / rng.choice(("net.pt", "net.safetensors", "net.bin"))
        path.write_bytes(damaged(rng, rng.choice(_originals())))
        with contextlib.suppress(cs.ConvSurgeonError):
            load_weights(model, path)
    assert not ran, "a pickle was executed"


@functools.cache
def network() -> bytes:
    """One conv, put together by hand: exporting one takes longer than all cases of a test run."""
    weight = numpy_helper.from_array(torch.ones(4, 3, 3, 3).numpy(), "weight")
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, side, side])
        for name, channels, side in (("x", 3, 8), ("y", 4, 6))
    )
    graph = helper.make_graph([helper.make_node("Conv", ["x", "weight"], ["y"])], "net", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


_PLACES = ("weights.bin", "net.onnx", "", "a\0b", "../net.onnx", "/dev/zero", "é" * 200, ".", "nothing")


def _moved(rng: random.Random) -> bytes:
    """The network, now and then with its weights in another file."""
    if rng.random() < 0.7:
        return network()
    model = ModelProto.FromString(network())
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, values in (("location", _PLACES), ("offset", ("0", "-1", "x", "9" * 30)), ("length", ("432", "0", "-5"))):
        if rng.random() < 0.8:
            tensor.external_data.add(key=key, value=rng.choice(values))
    return bytes(model.SerializeToString())


def onnx(rng: random.Random) -> None:
    """`bench` times a file or refuses it."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder) / "net.onnx"
        path.write_bytes(damaged(rng, _moved(rng)) if rng.random() < 0.95 else rng.randbytes(rng.randint(0, 2000)))
        with contextlib.suppress(cs.ConvSurgeonError):
            cs.timing.bench(path, pairs=2, threads=[1], levels=["all"], progress=False)


def prepare() -> None:
    """What all cases share, made before the workers are forked."""
    _originals()
    network()
