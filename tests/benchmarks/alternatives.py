"""What does a network lose when it is made as fast in other ways, on the same images and by the same clock?

`converted` is the default call; `bundle` is the file that its export with int8 recommends. Every other way is brought
to at least the measured speed-up of `converted` by as little shrinking as that takes, and then distilled, without
labels, on the same images for the processor seconds that the conversion took; `at once` is what it has before. Network
Decoupling is the SVD of the weights as depthwise separable convs, Tucker is tensorly's of the weights. onnxruntime's
int8 has the speed that it has. Needs torch-pruning and tensorly.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import importlib.metadata
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convsurgeon as cs
from tests.benchmarks.cases import add_networks, add_seeds
from tests.benchmarks.measure import compare_files, compare_models, in_fresh_process, processor_seconds
from tests.benchmarks.networks import judged, sample_of
from tests.benchmarks.runner import Row, revision
from tests.benchmarks.subjects import SUBJECTS, Subject

_TRIES = 6
_PAIRS = 50
_LEAST, _MOST = 0.02, 0.95


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be made faster: the network, its images, and how to measure."""

    subject: Subject
    model: nn.Module
    images: Tensor
    batches: Sequence[tuple[Tensor, Tensor]]
    example: Tensor

    def row(self, other: nn.Module) -> Row:
        """Return the metric and the speed of another network."""
        with torch.no_grad():
            timed = compare_models(self.model, other, self.example, 1, _PAIRS)
            return {**timed, **judged(self.subject, self.model, other.eval(), self.batches)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the networks and seeds."""
    add_networks(parser, list(SUBJECTS), ["resnet20", "100 classes", "lines u-net", "squeezenet", "dncnn"])
    add_seeds(parser)


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each network, seed and way."""
    for name, seed in itertools.product(options.networks, options.seeds):
        for row in in_fresh_process(_compare, name, seed, options.threads):
            yield {"network": name, "seed": seed, "revision": revision()} | row


def _compare(name: str, seed: int, threads: int) -> list[Row]:
    torch.set_num_threads(threads)
    subject = SUBJECTS[name]()
    images = subject.images(seed)
    task = Task(subject, subject.make(), images, list(subject.test()), sample_of(subject, images))
    with tempfile.TemporaryDirectory() as cache:
        started, runtime = processor_seconds(), cs.Runtime(cache=cache)
        result = cs.convert(task.model, task.example, calibration=images, seed=seed, runtime=runtime, progress=False)
    seconds = processor_seconds() - started
    rows = [{"way": "converted", **task.row(result.model), "processor s": round(seconds)}]
    if result.changes:
        rows += [_bundle(task, result)]
        rows += [row for way in WAYS for row in _rows(way, task, rows[0]["times as fast"], result, seconds)]
    return [*rows, {"way": f"int8 of onnxruntime {ort.__version__}", **_int8(task)}]


def _rows(way: str, task: Task, speed: float, result: cs.Result, seconds: float) -> Iterator[Row]:
    """Yield what a way gives at once and distilled; or why it gives nothing."""
    package, shrink = WAYS[way]
    label = f"{way} ({package} {importlib.metadata.version(package)})" if package else way
    try:
        other = _as_fast(partial(shrink, task), task, speed)
    except Exception as error:  # what other packages raise on networks that they cannot take
        yield {"way": label, "why not": f"{type(error).__name__}: {error}"[:160]}
        return
    if other is None:
        yield {"way": label, "why not": f"is not {speed:.2f} times as fast however much it is shrunk"}
        return
    yield {"way": f"{label}, at once", **task.row(other)}
    started = processor_seconds()
    learnt = _distilled(dataclasses.replace(result, model=other), task.images, seconds)
    spent = round(processor_seconds() - started)
    yield {"way": f"{label}, distilled", **task.row(learnt), "processor s": spent}


def _as_fast(shrink: Callable[[float], nn.Module], task: Task, speed: float) -> nn.Module | None:
    """Return the network that is shrunk least among those that are at least so fast, by halving."""
    low, high, found = _LEAST, _MOST, None
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


def _pruned(importance: str, task: Task, share: float) -> nn.Module:
    """Return the network without a share of its channels, by the importance of a name of torch-pruning."""
    pruning = importlib.import_module("torch_pruning")
    model = copy.deepcopy(task.model).requires_grad_(True)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    kept = [layer for layer in layers[:-1] if layer.weight.shape[0] < 8] + layers[-1:]
    pruner = pruning.pruner.BasePruner(
        model, task.example, getattr(pruning.importance, importance)(), pruning_ratio=share, ignored_layers=kept,
        round_to=4,
    )  # fmt: skip
    output = model(task.images[:64])
    own = F.cross_entropy(output, output.argmax(1)) if output.dim() == 2 and output.shape[1] > 1 else output.square()
    own.mean().backward()
    pruner.step()
    model.zero_grad()
    return model


def _decoupled(task: Task, share: float) -> nn.Module:
    """Return the network with separable convs of the SVD of the weights, of fewer terms the larger the share."""
    rank = max(1, round(9 * (1 - share)))
    return cs.convert(
        task.model, task.example, forms=[cs.DepthwiseSeparable(rank=rank)], calibration=False, progress=False
    ).model


def _tucker(task: Task, share: float) -> nn.Module:
    """Return the network with every ungrouped k x k conv as three by the Tucker decomposition of its weights."""
    model = copy.deepcopy(task.model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and min(layer.kernel_size) > 1 and layer.in_channels > 8:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _three(layer, 1 - share))
    return model


def _three(layer: nn.Conv2d, share: float) -> nn.Sequential:
    weight = layer.weight.detach().numpy()
    ranks = [max(1, round(share * size)) for size in weight.shape[:2]]
    (core, (after, before)), _ = importlib.import_module("tensorly.decomposition").partial_tucker(
        weight, rank=ranks, modes=[0, 1]
    )
    parts: list[tuple[Any, dict[str, Any]]] = [
        (before.T[:, :, None, None], {}),
        (core, {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}),
        (after[:, :, None, None], {}),
    ]
    convs = []
    for values, options in parts:
        wide = nn.Conv2d(values.shape[1], values.shape[0], values.shape[2:], bias=False, **options)
        wide.weight.data = torch.from_numpy(values.copy())
        convs.append(wide)
    convs[-1].bias = layer.bias
    return nn.Sequential(*convs)


WAYS: dict[str, tuple[str, Callable[[Task, float], nn.Module]]] = {
    "pruned by magnitude": ("torch-pruning", partial(_pruned, "GroupMagnitudeImportance")),
    "pruned by first order": ("torch-pruning", partial(_pruned, "GroupTaylorImportance")),
    "Network Decoupling": ("", _decoupled),
    "Tucker": ("tensorly", _tucker),
}


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
    """Return what onnxruntime's static int8 of the network gives."""
    with tempfile.TemporaryDirectory() as folder:
        float_file, file = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        cs.onnx.export(task.model, task.example, float_file)
        _quantise(float_file, file, task.images[:100])
        row = judged(task.subject, task.model, InRuntime(file), task.batches)
        return {**compare_files(float_file, file, threads=1, pairs=_PAIRS), **row}


def _quantise(float_file: Path, file: Path, images: Tensor) -> None:
    """Write onnxruntime's static int8 of a file, as its documentation recommends it."""
    quantization = importlib.import_module("onnxruntime.quantization")
    name = ort.InferenceSession(float_file, providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        """Feeds one image at a time."""

        def __init__(self) -> None:
            self.feeds = ({name: image[None].numpy()} for image in images)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    ready = file.with_name("ready.onnx")
    quantization.quant_pre_process(str(float_file), str(ready), skip_symbolic_shape=True)
    quantization.quantize_static(str(ready), str(file), Reader(), per_channel=True)


class InRuntime(nn.Module):
    """A file in onnxruntime, which takes one image at a time."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Tensor:
        name = self.session.get_inputs()[0].name
        return torch.cat([torch.from_numpy(self.session.run(None, {name: one[None].numpy()})[0]) for one in x])
