"""Folders of candidate networks: the dense one, and others with a form at every site until all have been there.

    dense.onnx, candidate-00.onnx, ...    graphs without large weights; of int8 dense-int8.onnx, candidate-00-int8.onnx
    weights.bin                           noise that all of them read as their weights
    manifest.json                         what each file is, and what its nodes stand for
    measure.py, measuring/                in a folder for a device: the script that times them there

Every network reads the weights of its layers from places of their own, as the real one would: layers that shared their
memory would find it in the cache. Nobody learns the model from the folder, because large weights are noise.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import GraphProto, TensorProto, helper

from convsurgeon.base.errors import FormError, LatencyError
from convsurgeon.base.files import new_folder
from convsurgeon.base.normal import in_normal_mode
from convsurgeon.base.precision import PRECISIONS, Precision
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.model_files import Model
from convsurgeon.onnxnet import measuring, proto
from convsurgeon.onnxnet.measuring.engine import CPU, OPENVINO, fuses
from convsurgeon.onnxnet.measuring.files import DENSE_OF, FORMAT, MANIFEST, digest, write_json
from convsurgeon.planning.layers_as_convs import capture_as_convs
from convsurgeon.planning.select import Predicate
from convsurgeon.runtime.candidates import Candidate, candidates_of, pack
from convsurgeon.runtime.network_graph import (
    NetworkGraph,
    Shape,
    Skeleton,
    build_graph,
    export_skeleton,
    find_barred,
    fingerprint,
)
from convsurgeon.runtime.network_int8 import quantize_graph
from convsurgeon.runtime.stretches import cut_stretches

_WEIGHTS, _SCRIPT, _SOURCE = "weights.bin", "measure.py", "measuring"
_START = '''\
"""Time the networks of this folder and write device.json; `python measure.py --help` says how."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))
from measuring.main import main  # noqa: E402

sys.exit(main(FOLDER))
'''
_MOST, _MOST_STRETCHES = 100, 10_000
_STRETCH = "stretch-{:04}.onnx"
_ALIGNED, _PAGE = 64, 4096
_NOISE = 1 << 20
_BYTES = -1
"""The region of weights in eight bits, which are noise of one size."""


@in_normal_mode
def write_device_folder(
    model: Model,
    example: object,
    forms: Sequence[Form],
    folder: str | Path,
    policy: Predicate | None = None,
    *,
    provider: str = CPU,
    overwrite: bool = False,
) -> int:
    """Write the networks to be timed on a device, in fp32 and int8, and the script that does it.

    On the device, `python measure.py` needs numpy and onnxruntime, and openvino where that is the provider;
    `Runtime.load` reads its `device.json` here.

    Args:
        model: any module that runs on the example, or the path of an ONNX file.
        example: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`; None will do for a file.
        forms: candidates for every site.
        folder: where to write.
        policy: which sites may be changed; all by default.
        provider: that `measure.py` uses if it is not told another; one that fuses all nodes needs further files.
        overwrite: whether an older folder may be replaced, if it holds nothing else and no result.

    Returns:
        The number of candidate networks, in both precisions.

    Raises:
        CaptureError: the model does not run on the example.
        ExportError: the model has no ONNX form.
        FormError: no conv takes any of the forms, or there are too many of them.
        LatencyError: a form cannot be timed, or the provider is not called so anywhere.
        WriteError: the folder exists or cannot be written.
    """
    if provider != OPENVINO and not provider.endswith("ExecutionProvider"):
        raise LatencyError(f"provider {provider!r}: pass its whole name, such as {CPU}, or {OPENVINO!r}")
    names = {_file_name(number, precision) for number in range(_MOST) for precision in PRECISIONS}
    names |= {_STRETCH.format(number) for number in range(_MOST_STRETCHES)}
    with new_folder(folder, overwrite, frozenset({*names, _WEIGHTS, MANIFEST, _SCRIPT, _SOURCE})) as draft:
        seen = capture_as_convs(model, example)
        candidates = pack(candidates_of(seen, forms, policy))
        if not candidates:
            raise FormError("forms: no conv takes any of them; pass other forms, or lower ranks")
        if len(candidates) >= _MOST:
            raise FormError(f"forms: {len(candidates)} networks to time; pass fewer than {_MOST}")
        skeleton = export_skeleton(seen, progress=False)
        count = write_candidates(draft, seen, skeleton, candidates, PRECISIONS, provider)
        source = Path(str(measuring.__file__)).parent
        shutil.copytree(source, draft / _SOURCE, ignore=shutil.ignore_patterns("__pycache__"))
        (draft / _SCRIPT).write_text(_START, encoding="utf-8")
    return count


def write_candidates(
    folder: Path,
    seen: Capture,
    bare: Skeleton,
    candidates: Sequence[Candidate],
    precisions: Sequence[Precision],
    provider: str = CPU,
) -> int:
    """Write the dense network and candidates in every precision into an empty folder, with a manifest.

    Sites that cannot be timed are left out, and candidates that are then the same are one. For a provider that fuses
    all nodes there are stretches of all networks. Returns how many candidates were written, in all precisions.
    """
    barred = find_barred(bare)
    entries: dict[str, dict[str, Any]] = {}
    graphs: dict[str, NetworkGraph] = {}
    for precision in precisions:
        own = [one.without(barred) for one in candidates]
        changed = {one.key(precision): one for one in own if one.chosen or one.as_it_was}
        named = {DENSE_OF[precision]: Candidate("dense", {}), **changed}
        for number, (key, one) in enumerate(named.items()):
            made = build_graph(bare, one.chosen, as_it_was=one.as_it_was)
            graphs[key] = quantize_graph(made) if precision == "int8" else made
            entries[key] = _entry(one, made, _file_name(number, precision), precision)
    stretches = _cut_all(graphs, entries) if fuses(provider) else {}
    regions = _regions(graphs.values())
    _write_noise(folder / _WEIGHTS, regions)
    for key, network in graphs.items():
        entries[key]["weight_bytes"] = _place(network, regions)
        (folder / entries[key]["file"]).write_bytes(network.model.SerializeToString(deterministic=True))
    for name, network in stretches.items():
        _place(network, regions)
        (folder / name).write_bytes(network.model.SerializeToString(deterministic=True))
    files = [_WEIGHTS, *(entry["file"] for entry in entries.values()), *stretches]
    manifest = {
        "convsurgeon_candidates": FORMAT,
        "network": fingerprint(seen),
        "model": type(seen.model).__name__,
        "example": str(seen.example),
        "provider": provider,
        "barred": barred,
        "sites": list(bare.sites),
        "activation_bytes": seen.cost.peak_activation_bytes,
        "inputs": _inputs(bare.model.graph),
        "stretches": {name: _inputs(network.model.graph) for name, network in stretches.items()},
        "networks": entries,
        "files": {name: digest(folder / name) for name in files},
    }
    write_json(folder / MANIFEST, manifest)
    return len(entries) - len(precisions)


def _entry(one: Candidate, made: NetworkGraph, file: str, precision: Precision) -> dict[str, Any]:
    """Return what the manifest says of a network."""
    return {
        "file": file,
        "label": one.label,
        "precision": precision,
        "forms": {site: form.to_dict() for site, form in one.chosen.items()},
        "nodes": msgspec.to_builtins(made.nodes),
    }


def _cut_all(graphs: Mapping[str, NetworkGraph], entries: dict[str, dict[str, Any]]) -> dict[str, NetworkGraph]:
    """Return every stretch once, by the name of its file, and enter in each network's entry which are its own."""
    found: dict[tuple[bytes, str], tuple[str, NetworkGraph]] = {}
    for key, network in graphs.items():
        own = {}
        for node, stretch in cut_stretches(network).items():
            same = stretch.model.SerializeToString(deterministic=True), str(stretch.weights)
            own[node] = found.setdefault(same, (_STRETCH.format(len(found)), stretch))[0]
        entries[key]["stretches"] = own
    return dict(found.values())


def _inputs(graph: GraphProto) -> list[dict[str, Any]]:
    """Return what a network takes, for the manifest."""
    kinds = {info.name: info.type.tensor_type.elem_type for info in graph.input}
    return [
        {"name": name, "dtype": str(helper.tensor_dtype_to_np_dtype(kinds[name])), "shape": list(shape)}
        for name, shape in proto.signature(graph.input)
    ]


def _file_name(number: int, precision: Precision) -> str:
    """Return the name of a network's file; the dense one is number 0."""
    ending = "" if precision == "fp32" else f"-{precision}"
    return f"candidate-{number - 1:02}{ending}.onnx" if number else f"dense{ending}.onnx"


def _spans(network: NetworkGraph) -> list[tuple[str, Shape, int, int, int]]:
    """Return every weight with its region, and its offset and length in there.

    A region is a size of noise, in half powers of two: the one that keeps the size of what goes through the layer.
    """
    used: dict[int, int] = {}
    spans = []
    for name, shape in network.weights.items():
        scale = max(0, round(math.log2(max(1.0, math.prod(shape[1:]) / 2))))
        scale = _BYTES if name in network.int8_weights else scale
        length = (1 if scale == _BYTES else 4) * math.prod(shape)
        start = used.get(scale, 0)
        used[scale] = start + -(-length // _ALIGNED) * _ALIGNED
        spans.append((name, shape, scale, start, length))
    return spans


def _regions(networks: Iterable[NetworkGraph]) -> dict[int, tuple[int, int]]:
    """Return (offset, length) of every scale in the file, as long as the network with most weights of it needs."""
    needs: dict[int, int] = {}
    for network in networks:
        for _, _, scale, start, length in _spans(network):
            needs[scale] = max(needs.get(scale, 0), start + length)
    regions, offset = {}, 0
    for scale, need in sorted(needs.items()):
        regions[scale] = (offset, need)
        offset += -(-need // _PAGE) * _PAGE
    return regions


def _place(network: NetworkGraph, regions: Mapping[int, tuple[int, int]]) -> int:
    """Write into a graph where its weights are; return how many bytes they are."""
    total = 0
    for name, shape, scale, start, length in _spans(network):
        kind = TensorProto.INT8 if scale == _BYTES else TensorProto.FLOAT
        tensor = TensorProto(name=name, data_type=kind, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", _WEIGHTS), ("offset", regions[scale][0] + start), ("length", length)):
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
