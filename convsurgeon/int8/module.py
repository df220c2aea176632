"""A model as its int8 file computes it, as a torch module: exported, quantised and run as the file would be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import nn
from torch.utils import _pytree as pytree

from convsurgeon.base.errors import ExportError, first_line
from convsurgeon.calibration.dataset import first_images, images_in, select_images
from convsurgeon.graph.example import Example
from convsurgeon.graph.state import undisturbed
from convsurgeon.int8.feeds import make_feeds, open_sizes
from convsurgeon.int8.float_ends import find_float_ends
from convsurgeon.int8.float_joins import find_float_joins
from convsurgeon.int8.pipeline import prepare, round_graph
from convsurgeon.int8.target import Target
from convsurgeon.onnx import inputs
from convsurgeon.onnx.exporter import export_graph
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import Feed, open_session, session_options

IMAGES = 128
"""Calibration images that ranges and weights are taken from: enough to tell plans apart."""

_BATCH, _LEAST = 16, 32
_VALUES, _ALL_VALUES = 300_000, 6_000_000
"""Of a batch's input, and of all of them: every value of the graph is looked at, so large images are taken in few."""


class Int8Module(nn.Module):
    """Runs an int8 graph of fixed shapes in the runtime, on other sizes and numbers of images too.

    `exact` is the network in float, for code that asks a model for its parameters, their device or dtype.
    """

    def __init__(self, graph: ModelProto, exact: nn.Module) -> None:
        super().__init__()
        self.exact = exact
        signature = proto.signature(graph.graph.input)
        size = signature[0][1][0]
        self.batch = size if isinstance(size, int) and size > 0 else 1
        self.names = [name for name, _ in signature]
        self.session = open_session(open_sizes(graph), session_options(1, "all"))
        self._structure: pytree.TreeSpec | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of the graph; a part of a batch is filled up with its last image."""
        given = inputs.order_example(self.exact, Example(args, kwargs))
        count, device = images_in(given), Example(args, kwargs).tensors()[0].device
        parts = [self._run(select_images(given, slice(at, at + self.batch))) for at in range(0, count, self.batch)]
        whole = [np.concatenate(found)[:count] for found in zip(*parts, strict=True)]
        outputs = tuple(torch.from_numpy(found).to(device) for found in whole)
        if self._structure is None:
            with undisturbed(self.exact):
                self._structure = pytree.tree_structure(self.exact(*given.args, **given.kwargs))
        if self._structure.num_leaves == len(outputs):
            return pytree.tree_unflatten(outputs, self._structure)
        return outputs[0] if len(outputs) == 1 else outputs

    def _run(self, part: Example) -> list[np.ndarray[Any, Any]]:
        count = images_in(part)
        places = torch.arange(self.batch, device="cpu").clamp(max=count - 1)
        filled = part if count == self.batch else select_images(part, places)
        feed = {name: one.numpy() for name, one in zip(self.names, filled.tensors(), strict=True)}
        try:
            found: list[np.ndarray[Any, Any]] = self.session.run(None, feed)
        except Exception as error:  # the runtime's exceptions share no base class but Exception
            raise ExportError(f"int8: the network cannot be run on these inputs: {first_line(error)}") from error
        return found


def as_int8(model: nn.Module, examples: Sequence[Example]) -> Int8Module:
    """Return a float model, which stays as it is, as its int8 file calibrated on the examples would compute it."""
    graph, feeds = build_float_graph(model, examples)
    target = Target.onnxruntime()
    try:
        ranges = prepare(graph, feeds)
        left = find_float_ends(graph, target) | find_float_joins(graph, feeds, target)
        return Int8Module(round_graph(graph, ranges, feeds, target, left), model)
    except ExportError:
        raise
    except Exception as error:  # the runtime's exceptions share no base class but Exception
        raise ExportError(f"int8: the network cannot be run on the calibration: {first_line(error)}") from error


def build_float_graph(model: nn.Module, examples: Sequence[Example]) -> tuple[ModelProto, list[Feed]]:
    """Return the model's graph in float, and as many calibration inputs as ranges are taken from."""
    arranged = [inputs.order_example(model, one) for one in examples]
    pixels = max(1, sum(one[0].numel() for one in arranged[0].tensors() if one.dim()))
    size = min(_BATCH, images_in(arranged[0]), max(1, _VALUES // pixels))
    images = min(IMAGES, max(_LEAST, _ALL_VALUES // pixels))
    graph = export_graph(model, first_images(arranged[0], size))
    names = [name for name, _ in proto.signature(graph.graph.input)]
    rows = [dict(zip(names, (one.numpy() for one in example.tensors()), strict=True)) for example in arranged]
    return graph, make_feeds(graph, rows)[: max(1, images // size)]
