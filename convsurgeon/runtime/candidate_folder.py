"""A folder of candidate networks: the dense one and one per form, each with the form wherever it fits.

    dense.onnx, candidate-00.onnx, ...    graphs without large weights; of int8 dense-int8.onnx, candidate-00-int8.onnx
    weights.bin                           noise that all of them read as their weights
    manifest.json                         what each file is, and what its nodes stand for

Every network reads the weights of its layers from places of their own, as the real one would: layers that shared their
memory would find it in the cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from convsurgeon.base.precision import Precision
from convsurgeon.forms.form import Form
from convsurgeon.onnx import standalone as measuring
from convsurgeon.onnxnet import proto
from convsurgeon.runtime.candidate_graph import Drawn, Shape, Skeleton, drawn
from convsurgeon.runtime.candidate_int8 import in_int8

WEIGHTS = "weights.bin"
FILES = ("dense.onnx", *(f"candidate-{number:02}.onnx" for number in range(100)))
FILES_OF: dict[Precision, tuple[str, ...]] = {
    "fp32": FILES,
    "int8": tuple(name.replace(".onnx", "-int8.onnx") for name in FILES),
}
_ALIGNED, _PAGE = 64, 4096
_NOISE = 1 << 20
_BYTES = -1
"""The region of weights in eight bits, which are noise of one size."""


@dataclass(frozen=True)
class Candidate:
    """One network to be timed: a label, the settled form of every site that it changes, and its precision."""

    label: str
    chosen: Mapping[str, Form]
    precision: Precision = "fp32"

    @property
    def key(self) -> str:
        """The same for the same forms at the same sites."""
        values = {name: form.to_dict() for name, form in sorted(self.chosen.items())}
        text = json.dumps(values, sort_keys=True) + ("" if self.precision == "fp32" else self.precision)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_folder(
    folder: Path,
    bare: Skeleton,
    candidates: Sequence[Candidate],
    about: Mapping[str, Any],
    precisions: Sequence[Precision] = ("fp32",),
) -> None:
    """Writes all files into an existing folder.

    Args:
        folder: Empty.
        bare: The dense graph.
        candidates: What to time beside it.
        about: What the manifest says of the network: its fingerprint, its name, its example.
        precisions: In which the dense graph is there; those of the candidates are among them.
    """
    todo: list[tuple[str, str, Candidate]] = []
    for precision in precisions:
        own = [Candidate("dense", {}, precision), *(one for one in candidates if one.precision == precision)]
        keys = [measuring.DENSE_OF[precision], *(one.key for one in own[1:])]
        todo += zip(keys, FILES_OF[precision], own, strict=False)
    networks = {key: _drawn(bare, one) for key, _, one in todo}
    regions = _regions(networks.values())
    _write_noise(folder / WEIGHTS, regions)
    entries = {}
    for key, name, one in todo:
        weight_bytes = _place(networks[key], regions)
        (folder / name).write_bytes(networks[key].model.SerializeToString(deterministic=True))
        forms = {site: form.to_dict() for site, form in one.chosen.items()}
        nodes = [list(dataclasses.astuple(node)) for node in networks[key].nodes]
        entries[key] = {"file": name, "label": one.label, "weight_bytes": weight_bytes, "forms": forms, "nodes": nodes}
        entries[key] |= {} if one.precision == "fp32" else {"precision": one.precision}
    manifest = {
        "convsurgeon_candidates": measuring.FORMAT,
        **about,
        "sites": list(bare.sites),
        "inputs": _inputs(bare.model),
        "networks": entries,
        "files": {name: measuring.digest(folder / name) for name in (*(name for _, name, _ in todo), WEIGHTS)},
    }
    measuring.write(folder / measuring.MANIFEST, manifest)


def _drawn(bare: Skeleton, one: Candidate) -> Drawn:
    made = drawn(bare, one.chosen)
    return made if one.precision == "fp32" else in_int8(made)


def _inputs(model: ModelProto) -> list[dict[str, Any]]:
    """Name, dtype and shape of every input."""
    kinds = {info.name: info.type.tensor_type.elem_type for info in model.graph.input}
    return [
        {"name": name, "dtype": str(helper.tensor_dtype_to_np_dtype(kinds[name])), "shape": list(shape)}
        for name, shape in proto.signature(model.graph.input)
    ]


def _scale(shape: Shape) -> int:
    """The noise of a layer, in half powers of two: as large as keeps what goes through it at its size."""
    return max(0, round(math.log2(max(1.0, math.prod(shape[1:]) / 2))))


def _spans(network: Drawn) -> list[tuple[str, Shape, int, int, int]]:
    """Every weight with its region, and from where to where it lies in there."""
    used: dict[int, int] = {}
    spans = []
    for name, shape in network.weights.items():
        scale = _BYTES if name in network.bytes else _scale(shape)
        length = (1 if scale == _BYTES else 4) * math.prod(shape)
        start = used.get(scale, 0)
        used[scale] = start + -(-length // _ALIGNED) * _ALIGNED
        spans.append((name, shape, scale, start, length))
    return spans


def _regions(networks: Iterable[Drawn]) -> dict[int, tuple[int, int]]:
    """Scale -> (offset, length) in the file of weights, each as long as the network that needs most of it."""
    needs: dict[int, int] = {}
    for network in networks:
        for _, _, scale, start, length in _spans(network):
            needs[scale] = max(needs.get(scale, 0), start + length)
    regions, offset = {}, 0
    for scale, need in sorted(needs.items()):
        regions[scale] = (offset, need)
        offset += -(-need // _PAGE) * _PAGE
    return regions


def _place(network: Drawn, regions: Mapping[int, tuple[int, int]]) -> int:
    """Tells the network where its weights lie; how many bytes they are."""
    total = 0
    for name, shape, scale, start, length in _spans(network):
        kind = TensorProto.INT8 if scale == _BYTES else TensorProto.FLOAT
        tensor = TensorProto(name=name, data_type=kind, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", regions[scale][0] + start), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        network.model.graph.initializer.append(tensor)
        total += length
    return total


def _write_noise(path: Path, regions: Mapping[int, tuple[int, int]]) -> None:
    random = np.random.default_rng(0)
    noise = random.standard_normal(_NOISE).astype(np.float32)
    levels = random.integers(-127, 128, _NOISE, dtype=np.int8)
    with path.open("wb") as file:
        for scale, (offset, need) in regions.items():
            file.seek(offset)
            scaled = (levels if scale == _BYTES else noise * np.float32(2.0 ** (-scale / 2))).tobytes()
            for start in range(0, need, len(scaled)):
                file.write(scaled[: need - start])
