"""Files of other makers, and files beyond 2 GB, for `bench_files`: right at full rank, or refused in a sentence."""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import convsurgeon as cs
from convsurgeon.base.tables import Table
from tests.networks import import_timm, import_torchvision
from tests.onnxnet.files import feed_of, nothing_else_touched, run

HOW: dict[str, Any] = {"policy": cs.everything(), "allow_growth": True, "calibration": False, "progress": False}


def _timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return import_timm().create_model(name, pretrained=False)  # type: ignore[no-any-return]

    return make


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return import_torchvision().models.get_model(name, weights=None)  # type: ignore[no-any-return]

    return make


def _yolo() -> nn.Module:
    import_torchvision()  # without which ultralytics does not load
    from ultralytics import YOLO

    return YOLO("yolov8n.yaml", verbose=False).model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: _torchvision(name) for name in ("mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_y_400mf")},
    **{name: _torchvision(name) for name in ("densenet121", "efficientnet_b0", "convnext_tiny")},
    **{name: _timm(name) for name in ("mobilenetv3_small_050", "tf_efficientnet_lite0", "ghostnet_050", "repvgg_a0")},
    "yolov8n": _yolo,
}


def exporters(options: argparse.Namespace) -> None:
    """Networks of torch through both of its exporters, or the files of a folder, written back at full rank."""
    rows: list[tuple[Any, ...]] = []
    if options.folder:
        for path in sorted(Path(options.folder).rglob("*.onnx")):
            rows.append((path.stem, "-", *judged(path)))
            print(*rows[-1], flush=True)
    for name in [] if options.folder else options.networks or NETWORKS:
        for kind in ("dynamo", "TorchScript"):
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                path = Path(folder) / f"{name}.onnx"
                try:
                    _export(NETWORKS[name](), path, options.side, kind == "dynamo")
                except Exception as error:  # the exporter's affair
                    rows.append((name, kind, f"not exported: {str(error).splitlines()[0][:60]}", 0, 0.0))
                else:
                    rows.append((name, kind, *judged(path)))
            print(*rows[-1], flush=True)
    columns = (("network", "text"), ("by", "text"), ("error", "text"), ("convs", "count"), ("s", "number"))
    print(Table("Every conv rewritten at full rank: error over the largest output", columns, tuple(rows)).text())


def _export(model: nn.Module, path: Path, side: int, dynamo: bool) -> None:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it had been trained
            nn.init.uniform_(module.weight, 0.5, 1.5)
    x = torch.randn(1, 3, side, side)
    torch.onnx.export(model.eval(), (x,), path, dynamo=dynamo, external_data=False, verbose=False)


def judged(path: Path) -> tuple[str, int, float]:
    """Error or refusal, convs rewritten, seconds."""
    began = time.perf_counter()
    try:
        result = cs.convert(path, forms=[cs.SpatialSeparable(rank=cs.Energy(1.0))], **HOW)
        made = path.with_name("made.onnx.tmp.onnx")
        cs.onnx.export(result.model, None, made, overwrite=True)
    except cs.ConvSurgeonError as error:
        return f"refused: {error}"[:100], 0, time.perf_counter() - began
    took, feed = time.perf_counter() - began, feed_of(path, 7)
    pairs = zip(run(path, feed), run(made, feed), strict=True)
    wrong = max(float(np.abs(one - two).max() / (np.abs(one).max() + 1e-30)) for one, two in pairs)
    owners: Any = result.model.owners
    nothing_else_touched(path, made, {output for site in result.changes for output in owners[site].outputs})
    made.unlink()
    return f"{wrong:.1e}", len(result.changes), took


def large(options: argparse.Namespace) -> None:
    """A file of more than 2 GB, its weights beside it: converted by its weights alone, written, checked, loaded."""
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        path = _beyond(folder, options.gigabytes)
        print(f"{_gigabytes(path):.2f} GB before")
        for what, step in (("convert", _converted), ("write", _written), ("reload", _reloaded)):
            began = time.perf_counter()
            path = step(path)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"{what:8} {time.perf_counter() - began:6.1f} s, peak {peak:.1f} GB", flush=True)


def _beyond(folder: Path, gigabytes: float) -> Path:
    """Two convs and two matrices that make up the size; one message of protobuf ends at 2 GB."""
    rows = int(gigabytes * 1e9 / 2 / 4 / 16384)
    random = np.random.default_rng(0)
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 32, 32])]
    outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, rows]) for name in ("y0", "y1")]
    convs = [random.standard_normal((16, 16, 3, 3)).astype("f") / 12 for _ in range(2)]
    stored = [numpy_helper.from_array(array, f"conv{place}.weight") for place, array in enumerate(convs)]
    matrix = np.full((16384, rows), 1e-3, dtype="f")
    matrix[::7] = -1e-3
    stored += [numpy_helper.from_array(matrix, f"matrix{place}") for place in range(2)]
    nodes = [
        helper.make_node("Conv", ["x", "conv0.weight"], ["a"], "conv0", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "conv1.weight"], ["c"], "conv1", pads=[1] * 4),
        helper.make_node("Flatten", ["c"], ["d"], "flat"),
        *(helper.make_node("MatMul", ["d", f"matrix{place}"], [f"y{place}"], f"head{place}") for place in range(2)),
    ]
    graph = helper.make_graph(nodes, "large", ends, outs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "large.onnx", save_as_external_data=True, location="weights.bin")
    return folder / "large.onnx"


_MADE: list[Any] = []


def _converted(path: Path) -> Path:
    _MADE.append(cs.convert(path, forms=[cs.SpatialSeparable(rank=cs.Energy(1.0))], **HOW))
    return path


def _written(path: Path) -> Path:
    made = path.with_name("made.onnx")
    cs.onnx.export(_MADE.pop().model, None, made)
    print(f"{_gigabytes(made):.2f} GB after")
    return made


def _reloaded(path: Path) -> Path:
    onnx.checker.check_model(str(path))
    feed = feed_of(path, 3)
    one, two = (run(place, feed)[0] for place in (path.with_name("large.onnx"), path))
    print(f"error {np.abs(one - two).max() / np.abs(one).max():.1e}")
    return path


def _gigabytes(path: Path) -> float:
    model = onnx.load(path, load_external_data=False)
    beside = {item.value for one in model.graph.initializer for item in one.external_data if item.key == "location"}
    return sum(one.stat().st_size for one in (path, *(path.with_name(name) for name in beside))) / 1e9
