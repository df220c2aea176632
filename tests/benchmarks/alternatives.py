"""What does a network lose when it is made as fast in other ways, on the same images and by the same clock?

`converted` is the default call, or where that leaves the network as it was, the fastest that loses twice what it may
lose; `bundle` is the file that its export with int8 recommends. Every other way is brought to at least the measured
speed-up of `converted` by as little shrinking as that takes, and then distilled, without labels, on the same images for
the processor seconds that the conversion took; `at once` is what it has before. Network Decoupling is the SVD of the
weights as depthwise separable convs, Tucker is tensorly's of the weights. onnxruntime's int8, torch, torch.compile and
OpenVINO have the speed that they have. Where one of them loses no more than it may and is faster, `ours at the speed
of ...` is the conversion at that latency, distilled alike. Times are against the original as float in
onnxruntime, with one thread.
`behind`: what a way loses more than `converted`. Needs torch-pruning, tensorly and openvino.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

import convsurgeon as cs
from tests.benchmarks.cases import add_networks, add_seeds
from tests.benchmarks.judge import Batches, InRuntime, halves, judged, measure_metric, of_any_size, sample_of
from tests.benchmarks.measure import compare_files, compare_models, in_fresh_process, processor_seconds
from tests.benchmarks.other_ways import WAYS, elsewhere, quantise
from tests.benchmarks.runner import Row, revision
from tests.benchmarks.subjects import SUBJECTS, Subject

_TRIES = 5
_PAIRS = 50
_LEAST, _MOST = 0.02, 0.95


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be made faster: the network, its images, and how to measure."""

    subject: Subject
    model: nn.Module
    images: Tensor
    batches: Batches
    example: Tensor

    @staticmethod
    def of(name: str, seed: int) -> Task:
        """Return the task of a subject."""
        subject = SUBJECTS[name]()
        images = subject.images(seed)
        return Task(subject, subject.make(), images, list(subject.test()), sample_of(subject, images))

    def row(self, other: nn.Module) -> Row:
        """Return the metric and the speed of another network."""
        with torch.no_grad():
            timed = compare_models(self.model, other, self.example, 1, _PAIRS)
            return {**timed, **judged(self.subject, self.model, other.eval(), self.batches)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the networks, the seeds and the ways."""
    add_networks(parser, list(SUBJECTS), ["100 classes", "lines u-net", "resnet20", "super-resolution 50", "dncnn"])
    add_seeds(parser)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--resume", action="store_true", help="keep the networks that the JSON file holds")


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each network, seed and way."""
    held = json.loads(options.out.read_text())["rows"] if options.resume and options.out.exists() else []
    yield from held
    known = {(row["network"], row["seed"]) for row in held}
    for name, seed in itertools.product(options.networks, options.seeds):
        if (name, seed) not in known:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["CONVSURGEON_CACHE"] = folder
                about = {"network": name, "seed": seed, "revision": revision()}
                yield from (about | row for row in _rows(name, seed, Path(folder), options))


def _rows(name: str, seed: int, folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Yield what the conversion gives and what the other ways do, each from a process of its own."""
    ours = in_fresh_process(_converted, name, seed, folder, options.threads)
    yield ours
    others: list[Row] = []
    if "times as fast" in ours:
        speed, seconds = ours["times as fast"], ours["processor s"]
        for way in ("bundle", *options.ways):
            for row in in_fresh_process(_other, way, name, seed, folder, speed, seconds, options.threads):
                others.append(row | ({"behind": row["lost"] - ours["lost"]} if "lost" in row else {}))
                yield others[-1]
    for row in in_fresh_process(_as_they_are, name, seed, folder, options.threads):
        others.append(row)
        yield row
    networks = [row for row in (ours, *others) if "lost" in row]
    best = _fastest(networks, SUBJECTS[name]().metric.allowed)
    if best is not None and not _is_ours(best):
        yield in_fresh_process(_at_the_speed_of, best, name, seed, ours.get("processor s", 60), options.threads)


def _converted(name: str, seed: int, folder: Path, threads: int) -> Row:
    """Convert, keep the result in a folder, and return its row."""
    torch.set_num_threads(threads)
    task, started = Task.of(name, seed), processor_seconds()
    convert = partial(cs.convert, task.model, task.example, calibration=task.images, seed=seed, progress=False)
    result, way = convert(), "converted"
    if not result.changes:
        given, others = halves(task.batches)
        most = 2 * task.subject.metric.allowed
        result = convert(goal=cs.Within(most, metric=lambda one: measure_metric(task.subject, one, given)))
        task, way = dataclasses.replace(task, batches=others), f"converted, within {most}"
    if not result.changes:
        return {"way": way, "why not": "is left as it was"}
    seconds = round(processor_seconds() - started)
    torch.save(result if way == "converted" else dataclasses.replace(result, within=None), folder / "result.pt")
    return {"way": way, **task.row(result.model), "processor s": seconds}


def _other(way: str, name: str, seed: int, folder: Path, speed: float, seconds: float, threads: int) -> list[Row]:
    """Return what a way gives at once and distilled; or why it gives nothing."""
    torch.set_num_threads(threads)
    task, result = Task.of(name, seed), torch.load(folder / "result.pt", weights_only=False)
    if way == "bundle":
        return [_bundle(task, result)]
    package, shrink = WAYS[way]
    label = f"{way} ({package} {importlib.metadata.version(package)})" if package else way
    try:
        other = _as_fast(partial(shrink, task.model, task.example, task.images), task, speed)
    except Exception as error:  # what other packages raise on networks that they cannot take
        return [{"way": label, "why not": f"{type(error).__name__}: {error}"[:160]}]
    if other is None:
        return [{"way": label, "why not": f"is not {speed:.2f} times as fast however much it is shrunk"}]
    before, started = task.row(other), processor_seconds()
    learnt = _distilled(dataclasses.replace(result, model=other), task.images, seconds)
    spent = round(processor_seconds() - started)
    after = {**before, **judged(task.subject, task.model, learnt.eval(), task.batches), "processor s": spent}
    return [{"way": f"{label}, at once", **before}, {"way": f"{label}, distilled", **after}]


def _at_the_speed_of(best: Row, name: str, seed: int, seconds: float, threads: int) -> Row:
    """Return the conversion at the latency of another way's network, distilled for as long."""
    torch.set_num_threads(threads)
    task, started = Task.of(name, seed), processor_seconds()
    label = {"way": f"ours at the speed of {best['way']}"}
    try:
        result = cs.convert(
            task.model, task.example, calibration=task.images, goal=cs.Budget(latency=1 / best["times as fast"]),
            seed=seed, progress=False,
        )  # fmt: skip
    except cs.ConvSurgeonError as error:
        return {**label, "why not": str(error)[:160]}
    learnt = _distilled(result, task.images, seconds)
    return {**label, **task.row(learnt), "processor s": round(processor_seconds() - started)}


def _as_they_are(name: str, seed: int, folder: Path, threads: int) -> list[Row]:
    """Return what the original gives in int8 of onnxruntime, and how fast it and the converted one run elsewhere."""
    torch.set_num_threads(threads)
    task, made = Task.of(name, seed), folder / "result.pt"
    models = {"original": task.model}
    if made.exists():
        models["converted"] = torch.load(made, weights_only=False).model
    return [_int8(task), *elsewhere(models, task.example)]


def _as_fast(shrink: Callable[[float], nn.Module], task: Task, speed: float) -> nn.Module | None:
    """Return the network that is shrunk least among those that are at least so fast, by halving."""
    low, high, found = _LEAST, _MOST, None  # the shares that are too slow and fast enough
    for _ in range(_TRIES):
        share = (low + high) / 2
        other = shrink(share).eval()
        with torch.no_grad():
            timed = compare_models(task.model, other, task.example, 1, _PAIRS)
        if timed["times as fast"] >= speed:
            high, found = share, other
        else:
            low = share
    return found


def _distilled(result: cs.Result, images: Tensor, seconds: float) -> nn.Module:
    """Return a network after as many epochs of label-free distillation as so many processor seconds allow."""
    started = processor_seconds()
    cs.recover(result, images, recipe=cs.Recipe(epochs=1, lr=1e-3), progress=False)
    epochs = max(1, round(seconds / (processor_seconds() - started)))
    return cs.recover(result, images, recipe=cs.Recipe(epochs=epochs), progress=False).model


def _bundle(task: Task, result: cs.Result) -> Row:
    """Return what the recommended file of a bundle gives."""
    with tempfile.TemporaryDirectory() as folder:
        best = cs.export(result, Path(folder) / "out", int8=True, progress=False).recommended
        if best is None:
            return {"way": "bundle", "why not": "no file is recommended"}
        file, original = (Path(folder) / "out" / name for name in (best.name, "original.onnx"))
        row = judged(task.subject, task.model, InRuntime(file), task.batches)
        return {"way": f"bundle, {best.name}", **compare_files(original, file, threads=1, pairs=_PAIRS), **row}


def _int8(task: Task) -> Row:
    """Return what onnxruntime's static int8 of the original gives."""
    with tempfile.TemporaryDirectory() as folder:
        float_file, file = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        cs.onnx.export(task.model, task.images[:1], float_file)
        quantise(float_file, file, task.images[:100])
        sized = of_any_size(file)
        for dimension, size in zip(sized.graph.input[0].type.tensor_type.shape.dim, task.example.shape, strict=True):
            dimension.dim_value = size
        onnx.save(sized, file)
        cs.onnx.export(task.model, task.example, float_file, overwrite=True)
        row = judged(task.subject, task.model, InRuntime(file), task.batches)
        label = {"way": f"int8 of onnxruntime {ort.__version__}"}
        return {**label, **compare_files(float_file, file, threads=1, pairs=_PAIRS), **row}


def digest(rows: Sequence[Row]) -> list[Row]:
    """Return for each network the fastest network of ours, and of others, that loses no more than it may."""
    found = []
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name and "times as fast" in row]
        most = SUBJECTS[name]().metric.allowed
        line: Row = {"network": name, "may lose": most}
        for whose, ours in (("ours", True), ("other", False)):
            best = _fastest([row for row in own if _is_ours(row) == ours], most)
            named = ("-", "-", "-") if best is None else (best["way"], best["times as fast"], best.get("lost", 0.0))
            line |= dict(zip((f"fastest {whose}", f"times as fast: {whose}", f"lost: {whose}"), named, strict=True))
        rest = [row for row in own if not _is_ours(row) and "distilled" in row["way"]]
        closest = min(rest, key=lambda row: row["lost"], default=None)
        line["least lost by another at our speed"] = (
            "-" if closest is None else f"{closest['lost']:.2f}: {closest['way']}"
        )
        found.append(line)
    return found


def _fastest(rows: Sequence[Row], most: float) -> Row | None:
    """Return the fastest network of those that lose no more than they may."""
    near = [row for row in rows if "times as fast" in row and row.get("lost", 0.0) <= most]
    return max(near, key=lambda row: row["times as fast"], default=None)


def _is_ours(row: Row) -> bool:
    return str(row["way"]).startswith(("converted", "bundle", "ours")) and "original" not in row["way"]
