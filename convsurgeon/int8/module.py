"""A model as its int8 file computes it, where a torch module is expected: to judge it as any other.

The graph is exported, quantised and run by the very code that writes the file, so nothing has to be simulated: a CIFAR
ResNet-20 takes 4 s, nearly all of it torch's exporter, where the fit of its plan takes 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from convsurgeon.base.errors import ExportError, first_line
from convsurgeon.calibration.dataset import chosen, first, images_in
from convsurgeon.graph.example import Example
from convsurgeon.int8.feeds import feeds_of, opened_sizes
from convsurgeon.int8.pipeline import kept, lower, prepare
from convsurgeon.int8.target import Target
from convsurgeon.onnx import inputs
from convsurgeon.onnx.exporter import exported_graph
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import Feed, open_session, session_options

IMAGES = 128
"""Calibration images that ranges and weights are taken from: enough to tell plans apart."""

_BATCH, _LEAST = 16, 32
_VALUES, _ALL_VALUES = 300_000, 6_000_000
"""Of a batch's input, and of all of them: every value of the graph is looked at, so large images are taken in few."""


class Int8Module(nn.Module):
    """Runs an int8 graph in the runtime; takes and gives what the model it came from does, outputs as a flat tuple.

    Args:
        graph: with fixed shapes; it is run on other sizes of images, too, and on any number of them.
        exact: the network in float, for code that asks a model for its parameters, their device or dtype.
    """

    def __init__(self, graph: ModelProto, exact: nn.Module) -> None:
        super().__init__()
        self.exact = exact
        self.batch = _batch(graph)
        self.names = [name for name, _ in proto.signature(graph.graph.input)]
        self.session = open_session(opened_sizes(graph), session_options(1, "all"))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        """What the graph gives; a part of a batch is filled up with its last image."""
        given = inputs.ordered(self.exact, Example(args, kwargs))
        count, device = images_in(given), Example(args, kwargs).tensors()[0].device
        parts = [self._run(chosen(given, slice(at, at + self.batch))) for at in range(0, count, self.batch)]
        whole = [np.concatenate(found)[:count] for found in zip(*parts, strict=True)]
        outputs = tuple(torch.from_numpy(found).to(device) for found in whole)
        return outputs[0] if len(outputs) == 1 else outputs

    def _run(self, part: Example) -> list[np.ndarray[Any, Any]]:
        count = images_in(part)
        places = torch.arange(self.batch).clamp(max=count - 1)
        filled = part if count == self.batch else chosen(part, places)
        feed = {name: one.numpy() for name, one in zip(self.names, filled.tensors(), strict=True)}
        try:
            found: list[np.ndarray[Any, Any]] = self.session.run(None, feed)
        except Exception as error:  # the runtime's exceptions have no common base but Exception
            raise ExportError(f"int8: the network cannot be run on these inputs: {first_line(error)}") from error
        return found


def as_int8(model: nn.Module, examples: Sequence[Example]) -> Int8Module:
    """The model as its int8 file would compute it.

    Args:
        model: in float; it stays as it is.
        examples: calibration batches, of which `IMAGES` images are used.

    Raises:
        ExportError: the model has no ONNX form, or the quantiser fails on it.
    """
    graph, feeds = exported(model, examples)
    try:
        ranges = prepare(graph, feeds, "percentile")
        target = Target.onnxruntime()
        return Int8Module(lower(graph, ranges, feeds, target, kept(graph, target)), model)
    except ExportError:
        raise
    except Exception as error:  # the runtime's exceptions have no common base but Exception
        raise ExportError(f"int8: the network cannot be run on the calibration: {first_line(error)}") from error


def exported(model: nn.Module, examples: Sequence[Example]) -> tuple[ModelProto, list[Feed]]:
    """The model's graph in float, and so many of the calibration images that ranges can be taken from.

    Raises:
        ExportError: the model has no ONNX form.
    """
    arranged = [inputs.ordered(model, one) for one in examples]
    pixels = max(1, sum(one[0].numel() for one in arranged[0].tensors() if one.dim()))
    size = min(_BATCH, images_in(arranged[0]), max(1, _VALUES // pixels))
    images = min(IMAGES, max(_LEAST, _ALL_VALUES // pixels))
    graph = exported_graph(model, first(arranged[0], size))
    names = [name for name, _ in proto.signature(graph.graph.input)]
    rows = [dict(zip(names, (one.numpy() for one in example.tensors()), strict=True)) for example in arranged]
    return graph, feeds_of(graph, rows)[: max(1, images // size)]


def _batch(graph: ModelProto) -> int:
    size = proto.signature(graph.graph.input)[0][1][0]
    return size if isinstance(size, int) and size > 0 else 1
