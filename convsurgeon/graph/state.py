"""Looking at a model without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (dict, list, set)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts the model into eval mode without gradients, and every module back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Puts the model into eval mode without gradients, and puts back whatever changes inside the block.

    Modes, attributes, registered parameters and buffers, and one level of the lists and dicts that modules hold are
    restored, so a forward that stores activations on `self` leaves nothing behind; so are the values of buffers, which
    even a symbolic trace changes where the forward counts in place, and torch's CPU random generator.
    """
    modules = list(dict.fromkeys(model.modules()))
    saved = [(module, {name: _shallow(value) for name, value in vars(module).items()}) for module in modules]
    originals = [dict(vars(module)) for module in modules]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # or a user's autocast would remember casts of what is run on here
    try:
        with evaluating(model), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        for (module, copies), original in zip(saved, originals, strict=True):
            _restore(module, copies, original)
        with torch.no_grad():
            for buffer, value in buffers:
                _refill_buffer(buffer, value)


def saved(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def put_back(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives a model the state that `saved` copied, in its very tensors."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(state[name])


def _shallow(value: Any) -> Any:
    return value.copy() if isinstance(value, _CONTAINERS) else value


def _restore(module: nn.Module, copies: dict[str, Any], original: dict[str, Any]) -> None:
    """Gives a module back its attributes: the very objects it had, with the content they had."""
    attributes = vars(module)
    for name in [name for name in attributes if name not in original]:
        del attributes[name]
    for name, value in original.items():
        if isinstance(value, _CONTAINERS) and not _same(value, copies[name]):
            _refill(value, copies[name])
        attributes[name] = value


def _same(now: Any, before: Any) -> bool:
    """Whether a container holds the very objects it held."""
    if len(now) != len(before):
        return False
    if isinstance(now, dict):
        return all(k1 == k2 and v1 is v2 for (k1, v1), (k2, v2) in zip(now.items(), before.items(), strict=True))
    return all(one is two for one, two in zip(now, before, strict=True)) if isinstance(now, list) else now == before


def _refill_buffer(buffer: Tensor, value: Tensor) -> None:
    """Gives a buffer back its content, and its size where an observer has grown it."""
    if buffer.layout is not torch.strided or buffer.is_nested:
        buffer.copy_(value)
    elif buffer.shape != value.shape:
        buffer.resize_(value.shape).copy_(value)
    elif not torch.equal(buffer, value):
        buffer.copy_(value)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)
