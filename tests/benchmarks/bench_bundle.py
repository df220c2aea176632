"""Do other tools find anything wrong with our bundles? Real and torchvision networks, converted and exported.

    pip install onnxslim && pip install --no-deps torchvision==0.28.0     # both optional: what is missing is left out
    python -m tests.benchmarks.bench_bundle [--only resnet20 dncnn] [--rank 2] [--int8]

For each network a bundle of the original and of its conversion at one rank is written (without timing), and both files
are held against: parity with torch, onnx.checker (full), shape inference (strict, with types), loading in onnxruntime
without a warning, onnxslim (operators, constants and bytes that it would still save), and the mobile providers. Exits
with 1 if anything but a mobile provider objects. `--int8` measures ResNet-20 in int8 on the 932 CIFAR-10 images too:
wanted is at most 0.5 points below its float file.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from tabulate import tabulate
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.bundle.bundle import Bundle
from tests import networks

_VISION = ("resnet18", "resnet50", "mobilenet_v3_small", "efficientnet_b0")


def vision(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(networks.import_torchvision().models, name)(weights=None)
    return model.eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (lambda: networks.pretrained("resnet20"), (1, 3, 32, 32)),
    "dncnn": (lambda: networks.pretrained("dncnn"), (1, 1, 64, 64)),
    "vdsr": (lambda: networks.pretrained("vdsr"), (1, 1, 64, 64)),
    **{name: (lambda name=name: vision(name), (1, 3, 224, 224)) for name in _VISION},  # type: ignore[misc]
}


def checked(path: Path) -> list[str]:
    """What every tool says of a file: `ok`, or what it objects to."""
    model = onnx.load(path)
    return [
        _verdict(lambda: onnx.checker.check_model(model, full_check=True)),
        _verdict(lambda: onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)),
        _verdict(lambda: _load(path)),
        slimmer(path),
    ]


def _verdict(check: Callable[[], Any]) -> str:
    try:
        check()
    except Exception as error:  # whatever the tool raises is what is asked for
        return str(error).splitlines()[0][:60]
    return "ok"


def _load(path: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 2  # warnings go to stderr, where whoever runs this sees them
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def slimmer(path: Path) -> str:
    """What onnxslim would still change; the order of nodes and the metadata it drops are no changes."""
    try:
        slim = importlib.import_module("onnxslim").slim
    except ImportError:
        return "not installed"
    before, after = onnx.load(path), slim(str(path))
    counts = [collections.Counter(node.op_type for node in one.graph.node) for one in (before, after)]
    found = [
        f"{kind} {counts[0][kind]} -> {counts[1][kind]}"
        for kind in sorted({*counts[0], *counts[1]})
        if counts[0][kind] != counts[1][kind]
    ]
    tensors = [len(one.graph.initializer) for one in (before, after)]
    found += [f"constants {tensors[0]} -> {tensors[1]}"] if tensors[0] != tensors[1] else []
    return ", ".join(found) or "ok"


def mobile_row(name: str, bundle: Bundle) -> tuple[str, ...]:
    words = []
    for one in bundle.deployment.mobile["model.onnx"].providers:
        kinds = collections.Counter(node.rpartition("(")[2].rstrip(")") for node in one.blocking)
        stops = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        words.append(f"{one.suitable}, {one.taken}/{one.nodes} in {one.pieces}" + (f"; {stops}" if stops else ""))
    return name, *words


def int8_points(folder: Path) -> bool:
    """Top-1 of ResNet-20 in fp32 and int8, original and converted with calibration."""
    model = networks.pretrained("resnet20")
    images = networks.cifar_calibration(512)
    forms = [cs.Blueprint(rank=2)]
    result = cs.convert(model, images[:1], forms=forms, calibration=images, progress=False)
    cs.export(result, folder, int8=True, calibration=images, pairs=0, dynamic="batch", progress=False)
    names = ("original.onnx", "original-int8.onnx", "model.onnx", "model-int8.onnx")
    points = {name: _top1(folder / name) for name in names}
    print(tabulate(points.items(), headers=("ResNet-20, blueprint rank 2, 512 images", "top-1"), floatfmt=".2f"))
    return all(points[name] - points[name.replace(".", "-int8.")] <= 0.5 for name in ("original.onnx", "model.onnx"))


def _top1(path: Path) -> float:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    images, labels = networks._cifar("test")
    rows = [session.run(None, {"x": _batch(part)})[0].argmax(1) for part in images.split(233)]
    return 100 * float(np.mean(np.concatenate(rows) == labels.numpy()))


def _batch(images: Tensor) -> np.ndarray:
    return networks.normalise(images).numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--int8", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, mobile, good = [], [], True
    for name in options.only:
        make, shape = NETWORKS[name]
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            result = cs.convert(make(), example, forms=[cs.DepthwiseSeparable(rank=options.rank)], calibration=False)
            bundle = cs.export(result, Path(folder) / "out", pairs=0)
            for file in (bundle.original, bundle.converted):
                found = checked(file.path)
                good &= file.parity.passed and set(found) <= {"ok", "not installed"}
                figures = (f"{file.parity.relative:.0e}", f"{file.parity.sqnr_db:.0f} dB")
                rows.append((name, file.path.name, f"{file.size_bytes / 1e6:.2f}", *figures, *found))
            mobile.append(mobile_row(name, bundle))
        print(f"{name}: {len(result.changes)} convs rewritten, {time.perf_counter() - started:.0f} s", flush=True)
    headers = ("network", "file", "MB", "parity", "SQNR", "onnx.checker", "strict shapes", "loads", "onnxslim")
    print(tabulate(rows, headers=headers), "\n")
    print(tabulate(mobile, headers=("model.onnx of", "NNAPI", "CoreML NeuralNetwork", "CoreML MLProgram", "XNNPACK")))
    if options.int8:
        with tempfile.TemporaryDirectory() as folder:
            good &= int8_points(Path(folder) / "out")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
