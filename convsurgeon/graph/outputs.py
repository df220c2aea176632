"""What a model gives, however it is nested, and the tensors that it is judged at.

Those are its floating-point outputs, or what it picks from where it decides at the end (see `graph.picking`). A network
whose convs run on what was picked gives another number of values for another image: that is said before anything is
tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from convsurgeon.base.errors import CalibrationError
from convsurgeon.graph.example import Example, is_plain
from convsurgeon.graph.picking import Picking, describe
from convsurgeon.graph.state import undisturbed

_MIXED = 3
"""Images of mixed pixels that an output's size is looked at for."""


@dataclass(frozen=True)
class Answer:
    """What a model gives for one batch: the output, and the floating-point tensors that it is judged at.

    `where` says in words where these are; empty where they are the outputs.
    """

    output: Any
    judged: list[Tensor]
    where: str


def answer(model: Callable[..., Any], example: Example, parts: Iterable[nn.Module] = ()) -> Answer:
    """Return what a model, or another function with modules as `parts`, gives for copies of a batch."""
    own = example.map(torch.clone)
    picking = Picking(own.tensors())
    with picking.through(model.modules() if isinstance(model, nn.Module) else parts):
        output = model(*own.args, **own.kwargs)
    judged = picking.judged(leaves_in(output))
    if not judged:
        raise CalibrationError(
            f"output: {_in_words(tensors_in(output))}, without any floating-point tensor that comes from the network's "
            "weights: errors are not known; convert the part of the model before it decides, or pass calibration=False"
        )
    tensors = [one.tensor for one in judged]
    alone = own.tensors()[0].shape[:1] == (1,)
    tensors = [one[None] if alone and one.shape[:1] != (1,) else one for one in tensors]  # a single image's row
    return Answer(output, tensors, describe(judged))


def outputs(model: nn.Module, example: Example) -> list[Tensor]:
    """Return the tensors that a model is judged at, in eval mode; the model is left as it was."""
    with undisturbed(model):
        return answer(model, example).judged


def float_tensors(output: object) -> list[Tensor]:
    """Return the floating-point tensors of an output, as `tensors_in` finds them."""
    return [leaf for leaf in tensors_in(output) if leaf.is_floating_point()]


def tensors_in(value: object) -> list[Tensor]:
    """Return all tensors of an output."""
    return [leaf for leaf in leaves_in(value) if isinstance(leaf, Tensor)]


def leaves_in(value: object) -> list[Any]:
    """Return all values of an output: in tuples, lists, dicts, and the fields of plain objects."""
    leaves: list[Any] = []
    for leaf in pytree.tree_leaves(value):
        if not isinstance(leaf, Tensor) and hasattr(leaf, "__dict__") and not callable(leaf):
            leaves.extend(leaves_in(dict(vars(leaf))))
        else:
            leaves.append(leaf if not isinstance(leaf, Tensor) or is_plain(leaf) else _as_array(leaf))
    return leaves


def _as_array(tensor: Tensor) -> Tensor:
    return tensor.to_padded_tensor(0.0) if tensor.is_nested else tensor.to_dense()


def pair_outputs(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the outputs of two networks for the same input, in pairs."""
    if _shapes(wanted) != _shapes(found):
        raise CalibrationError(
            f"output: of shape {_in_words(wanted)} from the original, {_in_words(found)} from the converted network "
            "for the same image, as where boxes are picked: errors are not known; convert the part before by itself"
        )
    return list(zip(wanted, found, strict=True))


def check_output_sizes(model: nn.Module, example: Example) -> None:
    """Refuse a network whose output has another size for another image of the same size."""
    generator = torch.Generator().manual_seed(0)

    def mixed(tensor: Tensor) -> Tensor:
        order = torch.randperm(tensor.numel(), generator=generator, device="cpu").to(tensor.device)
        return tensor.flatten()[order].view(tensor.shape) if tensor.is_floating_point() else tensor

    one = outputs(model, example)
    for _ in range(_MIXED):
        try:
            two = outputs(model, example.map(mixed))
        except Exception:  # the user's own forward may look at what it gets
            return
        if _shapes(one) == _shapes(two):
            continue
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
