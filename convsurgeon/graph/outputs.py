"""What a model gives: the tensors of its output, however they are nested.

A network that picks (boxes, by their scores) gives another number of values for another image, and another one once its
weights have changed. Two such networks cannot be told apart by their outputs, which is said before anything is tried.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from convsurgeon.base.errors import CalibrationError
from convsurgeon.graph.example import Example
from convsurgeon.graph.state import undisturbed


def outputs(model: nn.Module, example: Example) -> list[Tensor]:
    """Floating-point output tensors in eval mode, in pytree order; the model is left as it was."""
    with undisturbed(model):
        return float_tensors(example.run(model))


def float_tensors(output: object) -> list[Tensor]:
    """Return the floating-point tensors of an output, as `tensors_in` finds them."""
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


def pair_outputs(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the outputs of two networks for the same input, in pairs.

    Raises:
        CalibrationError: they are of other sizes.
    """
    if _shapes(wanted) != _shapes(found):
        raise CalibrationError(
            f"output: of shape {_in_words(wanted)} from the original, {_in_words(found)} from the converted network "
            "for the same image, as where boxes are picked: errors are not known; convert the part before by itself"
        )
    return list(zip(wanted, found, strict=True))


def check_output_sizes(model: nn.Module, example: Example) -> None:
    """Refuses a network whose output has another size for another image of the same size.

    Raises:
        CalibrationError: it does, with what to convert instead.
    """
    generator = torch.Generator().manual_seed(0)

    def mixed(tensor: Tensor) -> Tensor:
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        return tensor.flatten()[order].view(tensor.shape) if tensor.is_floating_point() else tensor

    try:
        one, two = outputs(model, example), outputs(model, example.map(mixed))
    except Exception:  # the user's own forward may look at what it gets
        return
    if _shapes(one) != _shapes(two):
        raise CalibrationError(
            f"calibration: {type(model).__name__} gives an output of shape {_in_words(one)} for one image, "
            f"{_in_words(two)} for another of its size, as where boxes are picked: errors are not known; convert "
            f"{part_before(model)} by itself and put it back, or pass calibration=False"
        )


def part_before(model: nn.Module) -> str:
    """Return the part of a network before it picks, in words."""
    children = dict(model.named_children())
    found = next((name for name in ("backbone", "encoder", "features", "body") if name in children), "")
    return f"model.{found}" if found else "the part before it"


def _shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def _in_words(tensors: Sequence[Tensor]) -> str:
    shapes = ["x".join(map(str, shape)) or "one number" for shape in _shapes(tensors)]
    return ", ".join(shapes[:4]) + (", ..." if len(shapes) > 4 else "") if shapes else "nothing"
