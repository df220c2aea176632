"""The parts of a network that another runtime computes: where gradients end, and what a reader must know of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.graph.example import Example
from convsurgeon.graph.state import undisturbed, watch_inputs
from convsurgeon.onnxnet.modules import Subgraph
from convsurgeon.onnxnet.network import OnnxNetwork

Ends = dict[int, tuple[Tensor, Subgraph]]
"""Values that a part reads and gradients come from, by `id`, each with the part."""


@contextmanager
def watch_gradient_ends(model: nn.Module) -> Iterator[Ends]:
    """Collect where gradients end while the model runs."""
    found: Ends = {}

    def look(part: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(part, Subgraph)
        for value, read in zip(given, part.cuts, strict=True):
            if read and isinstance(value, Tensor) and value.requires_grad:
                found.setdefault(id(value), (value, part))

    with watch_inputs((module for module in model.modules() if isinstance(module, Subgraph)), look):
        yield found


def operators_without_gradient(model: nn.Module, example: Example) -> tuple[str, ...]:
    """Operators of the parts that gradients cannot go through on their way from the output, each once."""
    if not any(isinstance(module, Subgraph) for module in model.modules()):
        return ()
    with undisturbed(model), torch.enable_grad(), watch_gradient_ends(model) as ends:
        example.map(lambda one: one.detach().requires_grad_(one.is_floating_point())).run(model)
    return tuple(dict.fromkeys(kind for _, part in ends.values() for kind in part.operators))


def note_on_inputs(model: nn.Module, changed: Iterable[str]) -> tuple[str, ...]:
    """Return a note on inputs of a file that were weights of its changed convs, and that nobody can pass any more."""
    if not isinstance(model, OnnxNetwork) or model.source.model.ir_version < 4:  # before, all weights were inputs
        return ()
    graph = model.source.model.graph
    ends = {output for name in changed for output in model.file_conv(name).sizes}
    read = {name for node in graph.node if ends.intersection(node.output) for name in node.input[1:]}
    gone = ", ".join(info.name for info in graph.input if info.name in read)
    return (f"{gone}: inputs of the file that were weights of changed convs are not read any more.",) if gone else ()


def note_on_subgraphs(model: nn.Module, example: Example, fitted: bool) -> tuple[str, ...]:
    """Return a note on the parts of an original that give no gradients, if any; `fitted` tells whether weights were."""
    kinds = operators_without_gradient(model, example)
    if not kinds:
        return ()
    words = ", ".join(kinds[:6]) + (" and others" if len(kinds) > 6 else "")
    text = f"{words} of the file run in onnxruntime, which gives no gradients"
    if fitted:
        text += "; errors before them were weighed by what they do to the values that go into them"
    return (f"{text}.",)
