"""What a model gives: the tensors of its output, however they are nested."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from convsurgeon.graph.example import Example
from convsurgeon.graph.state import undisturbed


def outputs(model: nn.Module, example: Example) -> list[Tensor]:
    """Floating-point output tensors in eval mode, in pytree order; the model is left as it was."""
    with undisturbed(model):
        return floating(example.run(model))


def floating(output: object) -> list[Tensor]:
    """The floating-point tensors of an output, as `tensors_in` finds them."""
    return [leaf for leaf in tensors_in(output) if leaf.is_floating_point()]


def tensors_in(value: object) -> list[Tensor]:
    """All tensors of an output: in tuples, lists, dicts, and the fields of dataclasses and other plain objects."""
    leaves = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            leaves.append(leaf)
        elif hasattr(leaf, "__dict__") and not callable(leaf):
            leaves.extend(tensors_in(dict(vars(leaf))))
    return leaves
