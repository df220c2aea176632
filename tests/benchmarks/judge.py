"""What a network loses of what its user measures, against another one on the same test images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from tests.benchmarks.runner import Row
from tests.benchmarks.subjects import Subject

Batches = Sequence[tuple[Tensor, Tensor]]


class InRuntime(nn.Module):
    """A file in onnxruntime, which takes one image at a time, of any size that its nodes can take."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.session = ort.InferenceSession(of_any_size(file).SerializeToString(), providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Tensor:
        name = self.session.get_inputs()[0].name
        return torch.cat([torch.from_numpy(self.session.run(None, {name: one[None].numpy()})[0]) for one in x])


def of_any_size(file: Path) -> onnx.ModelProto:
    """Return a file's graph with all sizes of its inputs and outputs open."""
    graph = (model := onnx.load(file)).graph
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            dimension.dim_param = f"{value.name} {axis}"
    return model


def sample_of(subject: Subject, images: Tensor) -> Tensor:
    """Return what a network is timed with."""
    return images[:1] if images.shape[1:] == subject.shape[1:] else torch.zeros(subject.shape)


def halves(batches: Batches) -> tuple[Batches, Batches]:
    """Return every other test image, and the others; of batches that hold one image each, every other batch."""
    if all(len(images) == 1 for images, _ in batches):
        return batches[::2], batches[1::2]
    one, two = ([(images[start::2], answers[start::2]) for images, answers in batches] for start in (0, 1))
    return one, two


@torch.inference_mode()
def measure_metric(subject: Subject, model: nn.Module, batches: Batches) -> float:
    """Return the subject's metric of a network."""
    counts = [subject.metric.counts(model(images), answers) for images, answers in batches]
    return subject.metric.together(torch.cat(counts))


@torch.inference_mode()
def judged(subject: Subject, before: nn.Module, after: nn.Module, batches: Batches) -> Row:
    """Return the metric before and after, what is lost with its standard error, and what stays."""
    metric, first, second = subject.metric, [], []
    same = asked = noise = power = 0.0
    for images, answers in batches:
        one, two = before(images), after(images)
        first.append(metric.counts(one, answers))
        second.append(metric.counts(two, answers))
        if (stay := metric.stay(one, two)) is not None:
            same, asked = same + stay[0], asked + stay[1]
        noise += float((one - two).double().square().sum())
        power += float(one.double().square().sum())
    lost, off = metric.lost(torch.cat(first), torch.cat(second))
    near = f"{10 * math.log10(power / noise):.1f} dB" if noise else "all"
    kept = f"{100 * same / max(asked, 1):.1f} %" if metric.decide else near
    values = [metric.together(torch.cat(counts)) for counts in (first, second)]
    return {"unit": metric.unit, "before": values[0], "after": values[1], "lost": lost, "±": off, "stay": kept}
