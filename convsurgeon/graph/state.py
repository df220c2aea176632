"""Looking at a model without leaving a trace on it."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_CONTAINERS = (dict, list, set, deque)
_SHELLS = (nn.Module, Tensor, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)
"""What has attributes that are no cache of a forward's, or are looked at elsewhere."""


class _Kept(threading.local):
    """Values of parameters, by `id`, while blocks of `undisturbed` are open: kept once however deep they are nested."""

    def __init__(self) -> None:
        self.values: dict[int, _Value] = {}


_KEPT = _Kept()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode without gradients, and every module back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def outside_inference(model: nn.Module) -> nn.Module:
    """Return the model, or a copy if some of its tensors were made in inference mode, which no gradient passes."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model) if any(tensor.is_inference() for tensor in tensors) else model


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode without gradients, and restore whatever changes inside the block.

    That is what `keep_state` says, and torch's CPU random generator.
    """
    with keep_state(model), evaluating(model), torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def keep_state(model: nn.Module) -> Iterator[None]:
    """Restore what runs of a model inside the block change.

    Attributes, registered parameters and buffers, and the lists and dicts that modules hold, nested ones and those of
    plain objects too, so a forward that stores activations on `self` leaves nothing behind; and the values of
    parameters and buffers, which even a symbolic trace changes where the forward works on them in place.
    """
    containers = [(held, dict(held) if isinstance(held, dict) else list(held)) for held in _containers(model)]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
    try:
        with _parameters_kept(model):
            yield
    finally:
        for container, content in containers:
            _restore(container, content)
        with torch.no_grad():
            for buffer, value in buffers:
                _refill_buffer(buffer, value)


def written_parameters(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """Names of the parameters that a run of the model writes to, be it what they held already; they are put back."""
    with undisturbed(model):
        with _Writes() as writes:
            run()
        pointers = writes.pointers - {0}
        touched = [name for name, parameter in model.named_parameters() if _pointer(parameter) in pointers]
        held = {name: _KEPT.values.get(id(parameter)) for name, parameter in model.named_parameters()}
        moved = [name for name, value in held.items() if value is None or value.moved]
    return [*touched, *moved]


class _Writes(TorchDispatchMode):
    """Notes the memory that operators write to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pointers: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
            changed = [given[item.name] for item in func._schema.arguments if item.is_write and item.name in given]
            self.pointers |= {_pointer(leaf) for leaf in pytree.tree_leaves(changed) if isinstance(leaf, Tensor)}
        return func(*args, **kwargs)


def copy_state(model: nn.Module, moving: Iterable[nn.Parameter]) -> dict[str, Tensor]:
    """Return a copy of a model's buffers, and of those of its parameters that are to change."""
    kept = {id(parameter) for parameter in moving}
    others = {name for name, one in model.named_parameters(remove_duplicate=False) if id(one) not in kept}
    return {name: tensor.detach().clone() for name, tensor in _stored_tensors(model) if name not in others}


def restore_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model the state that `copy_state` copied, in its very tensors."""
    with torch.no_grad():
        for name, tensor in _stored_tensors(model):
            if name in state:
                tensor.copy_(state[name])


def _stored_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the state without what quantised layers put into it beside tensors."""
    return [(name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor)]


@dataclass(frozen=True)
class _Value:
    """A parameter's memory, and a copy of what it held."""

    parameter: nn.Parameter  # held so that its `id` stays its own
    memory: Tensor
    copy: Tensor

    @staticmethod
    def of(parameter: nn.Parameter) -> _Value:
        return _Value(parameter, parameter.data, parameter.detach().clone())

    @property
    def moved(self) -> bool:
        """Whether somebody gave the parameter other memory."""
        return _pointer(self.parameter) != _pointer(self.memory) or self.parameter.shape != self.memory.shape

    def restore(self) -> None:
        if self.moved:
            self.parameter.data = self.memory
        one, two = self.parameter, self.copy
        if one.shape != two.shape or one.dtype != two.dtype or not torch.equal(one, two):
            with torch.no_grad():
                self.parameter.copy_(self.copy)


@contextmanager
def _parameters_kept(model: nn.Module) -> Iterator[None]:
    """Restore the values that parameters had when the outermost such block was entered."""
    own = [
        parameter for parameter in model.parameters() if not parameter.is_meta and not nn.parameter.is_lazy(parameter)
    ]
    new = {id(parameter): _Value.of(parameter) for parameter in own if id(parameter) not in _KEPT.values}
    _KEPT.values.update(new)
    try:
        yield
    finally:
        for parameter in own:
            _KEPT.values[id(parameter)].restore()
        for key in new:
            del _KEPT.values[key]


def _pointer(tensor: Tensor) -> int:
    """Where its memory begins; 0 where it has none of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse, or wrapped by a transform
        return 0


def _containers(model: nn.Module) -> list[Any]:
    """Every dict, list and set that a model's attributes are kept in, once."""
    waiting: list[Any] = [vars(module) for module in model.modules()]
    found: dict[int, Any] = {}
    while waiting:
        container = waiting.pop()
        if id(container) in found:
            continue
        found[id(container)] = container
        inner = container.values() if isinstance(container, dict) else container
        waiting += [value for value in inner if isinstance(value, _CONTAINERS)]
    shells = [value for container in list(found.values()) for value in _plain_objects(container)]
    found |= {id(attributes): attributes for attributes in shells}
    return list(found.values())


def _plain_objects(container: Any) -> list[Any]:
    """Return the attributes of a user's own objects in a container, and one level of what they hold."""
    inner = container.values() if isinstance(container, dict) else container
    found: list[Any] = [vars(value) for value in inner if hasattr(value, "__dict__") and not isinstance(value, _SHELLS)]
    return found + [value for own in found for value in own.values() if isinstance(value, _CONTAINERS)]


def _restore(container: Any, content: Any) -> None:
    """Give a container back the very objects that it held."""
    if _same(container, content):
        return
    container.clear()
    if isinstance(container, dict | set):
        container.update(content)
    else:
        container.extend(content)


def _same(now: Any, before: Any) -> bool:
    """Whether a container holds the very objects it held."""
    if len(now) != len(before):
        return False
    if isinstance(now, dict):
        pairs = zip(now.items(), before.items(), strict=True)
        return all(k1 is k2 and v1 is v2 for (k1, v1), (k2, v2) in pairs)
    return all(one is two for one, two in zip(now, before, strict=True))


def _refill_buffer(buffer: Tensor, value: Tensor) -> None:
    """Restore a buffer's content, and its size where an observer has grown it."""
    plain = buffer.layout is torch.strided and not buffer.is_nested
    if plain and buffer.shape != value.shape:
        buffer.resize_(value.shape)
    if not plain or not torch.equal(buffer, value):
        buffer.copy_(value)


@contextmanager
def watch_inputs(modules: Iterable[nn.Module], look: Callable[..., None], *, by_name: bool = False) -> Iterator[None]:
    """Call `look` with a module and its positional arguments, and those by name, when one is run inside the block."""
    handles = [module.register_forward_pre_hook(look, with_kwargs=by_name) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
