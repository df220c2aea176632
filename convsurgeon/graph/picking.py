"""What a network picks from: the last floating-point tensors before a comparison, an argmax, a cast or an index.

A network that gives class numbers, masks or boxes decides at the end. What it gives then jumps from one value to
another, or has another size, so that no error can be measured there and no gradient comes back; what it picks from has
both. Convs or matrix products with weights that run behind a pick make values again: that pick is no decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from convsurgeon.onnxnet.modules import Subgraph

_WEIGHTED = ("linear", "matmul", "mm", "einsum")
_PICKING = {
    *("round", "floor", "ceil", "trunc", "sign", "heaviside", "fix", "topk", "sort", "nms", "batched_nms"),
    *("NonMaxSuppression", "TopK", "NonZero", "ArgMax", "ArgMin", "Round", "Floor", "Ceil", "Sign", "Compress"),
    *("Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal", "Unique", "GatherND", "GatherElements"),
}
"""Functions of torch, and operators of ONNX, that pick although they may give floating-point values."""
_LEAVING = {"numpy", "__array__", "tolist", "item", "__int__", "__float__", "__bool__", "__index__", "__complex__"}
"""Functions that give values of Python or NumPy."""
_WORDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!=", "getitem": "indexing", "to": "a cast"}
_CASTS = ("to", "type", "int", "long", "bool", "byte", "char", "short")


@dataclass
class Judged:
    """A tensor that a network is judged at, and the function that picked from it; none of an output."""

    tensor: Tensor
    function: str = ""


Picked = dict[int, Judged]
"""What something was picked from, each once."""


@dataclass(frozen=True)
class _Origin:
    """Of a value that depends on an input: whether weights had a part in it, and what it was picked from, if it was."""

    learned: bool
    picked: Picked


class Picking(TorchFunctionMode):
    """Follows the tensors of a forward pass, from its inputs on."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self._origins = WeakIdKeyDictionary()
        self._every: Picked = {}
        self._left: Picked = {}
        """What values of Python and NumPy were made of."""
        for tensor in inputs:
            self._origins[tensor] = _Origin(False, {})

    def judged(self, leaves: Sequence[Any]) -> list[Judged]:
        """Return the tensors that an output is judged at, each once; `leaves` are the output's values."""
        found: Picked = {}
        others: Picked = {}
        for leaf in leaves:
            origin = self._origins.get(leaf) if isinstance(leaf, Tensor) else None
            own = {}
            if isinstance(leaf, Tensor) and _continuous(leaf):
                own = {id(self._every.get(id(leaf), leaf)): Judged(leaf)}
            if origin is not None and origin.learned:
                found |= {key: value for key, value in (origin.picked or own).items() if key not in found}
            elif leaf is not None and self._left and (origin is None or not own):
                found |= {key: value for key, value in self._left.items() if key not in found}
            else:
                others |= own
        every = (found or others).values()
        return [
            Judged(torch.view_as_real(one.tensor), one.function) if one.tensor.is_complex() else one for one in every
        ]

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # of a property, which its getter knows; torchvision calls one that belongs to nothing
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        given = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        known = [(one, self._origins[one]) for one in given if one in self._origins]
        if not known:
            return func(*args, **kwargs)
        if name in ("numpy", "__array__") and args[0].requires_grad:
            args = (args[0].detach(), *args[1:])
        known = self._keep_overwritten(name, known, args)
        result = func(*args, **kwargs)
        self._note(name, given, known, args[0] if result is None else result)
        return result

    def _keep_overwritten(
        self, name: str, known: list[tuple[Tensor, _Origin]], args: tuple[Any, ...]
    ) -> list[tuple[Tensor, _Origin]]:
        """Return what is known, with a copy of a tensor that was picked from or is about to be, before it changes."""
        first, origin = known[0]
        if first is args[0] and (name == "__setitem__" or name.endswith("_")):
            pick = self._every.pop(id(first), None)
            if pick is not None or (not origin.picked and any(one.picked for _, one in known[1:])):
                copied = first.clone()
                known = [(copied, origin), *known[1:]]
                if pick is not None:
                    pick.tensor = copied
                    self._every[id(copied)] = pick
        return known

    def _note(self, name: str, given: list[Tensor], known: list[tuple[Tensor, _Origin]], result: Any) -> None:
        results = [one for one in pytree.tree_leaves(result) if isinstance(one, Tensor)]
        if name in _LEAVING:
            self._left |= self._sources(name, known)
        elif results:
            weighted = name.startswith("conv") or name.strip("_").endswith(_WEIGHTED)
            if weighted and len(known) < len(given):
                known = [(one, _Origin(True, {})) for one, _ in known]
            learned = any(origin.learned for _, origin in known)
            picked = any(origin.picked for _, origin in known) or name in _PICKING
            cut = name in ("detach", "data") and any(one.requires_grad for one, _ in known)
            # only where it matters, since what something was picked from is kept alive
            decides = picked or cut or not all(map(_continuous, results))
            chosen = _Origin(learned, self._sources(name, known) if decides else {})
            smooth = chosen if picked or cut else _Origin(learned, {})
            for one in results:
                self._origins[one] = smooth if _continuous(one) else chosen

    def _sources(self, name: str, known: Sequence[tuple[Tensor, _Origin]]) -> Picked:
        """Return what the values of a function were picked from, where weights had a part in it."""
        word = name.strip("_")
        word = _WORDS.get("to" if word in _CASTS else word, word)
        found: Picked = {}
        for value, origin in known:
            if origin.picked:
                found |= origin.picked
            elif origin.learned and _continuous(value):
                pick = self._every.setdefault(id(value), Judged(value, word))
                pick.function = word if pick.function == "detach" else pick.function
                found[id(pick)] = pick
        return found

    @contextmanager
    def through(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Follow values through the parts that another runtime computes, inside the block."""
        handles = [part.register_forward_hook(self._note_part) for part in modules if isinstance(part, Subgraph)]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _note_part(self, part: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        assert isinstance(part, Subgraph)
        known = [(one, self._origins[one]) for one in given if isinstance(one, Tensor) and one in self._origins]
        picks = sorted(_PICKING.intersection(part.operators))
        if known:
            learned = [(one, _Origin(True, origin.picked)) for one, origin in known]
            self._note(picks[0] if picks else "to", [], learned, result)


def describe(judged: Sequence[Judged]) -> str:
    """Return where a network is judged, in words; empty where that is its outputs."""
    picked = [one for one in judged if one.function]
    if not picked:
        return ""
    sizes = ", ".join("x".join(map(str, one.tensor.shape[1:])) or "1" for one in picked)
    return f"the input of {', '.join(dict.fromkeys(one.function for one in picked))} ({sizes} values per image)"


def _continuous(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()
