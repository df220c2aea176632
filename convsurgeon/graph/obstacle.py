"""What makes a conv module something else than the plain function its geometry describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from convsurgeon.forms.geometry import Geometry

_CONVS = nn.modules.conv._ConvNd
_OWN = (
    *("forward", "_conv_forward", "__call__", "_call_impl", "__getattr__", "__getattribute__", "weight", "bias"),
    *("stride", "padding", "dilation", "groups", "padding_mode", "_reversed_padding_repeated_twice"),
)
_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
_GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def module_obstacle(conv: _CONVS, holders: Mapping[int, Sequence[nn.Module]]) -> str:
    """Why a module cannot be rewritten whatever the form; empty where it can.

    Args:
        conv: a conv module of any kind.
        holders: the modules that hold each parameter, by `id`.
    """
    if not isinstance(conv, nn.Conv2d):
        return f"{type(conv).__name__}: only Conv2d is rewritten"
    if parametrize.is_parametrized(conv):
        names = ", ".join(conv.parametrizations)  # type: ignore[arg-type]
        return f"its {names} is parametrised; call torch.nn.utils.parametrize.remove_parametrizations on it first"
    if conv._parameters.get("weight") is None:
        return "its weight is computed by a hook (weight_norm, spectral_norm); remove that first"
    own = _own_behaviour(conv)
    if own:
        return own
    if any(getattr(conv, name) for name in _HOOKS) or any(
        getattr(parameter, name, None) for parameter in conv.parameters(recurse=False) for name in _GRADIENT_HOOKS
    ):
        return "it carries hooks that would be lost; remove them first"
    if conv._buffers or conv._modules or set(conv._parameters) - {"weight", "bias"}:
        return "it holds buffers, parameters or modules of its own that would be lost"
    geometry = Geometry.of(conv)
    if conv.weight.shape != (geometry.out_channels, geometry.in_per_group, *geometry.kernel_size):
        return f"its weight has shape {tuple(conv.weight.shape)}, which is not what its attributes say"
    if padding := _stale_padding(conv, geometry):
        return padding
    if tied := _tied(conv, holders):
        return tied
    if not conv.weight.dtype.is_floating_point:
        return f"its weight is {str(conv.weight.dtype).removeprefix('torch.')}"
    return ""


def reading_obstacle(conv: _CONVS, name: str, readers: Mapping[str, str]) -> str:
    """Whether something else than the conv reads its weight; `readers` maps parameter names to who."""
    for parameter, _ in conv.named_parameters(recurse=False):
        if f"{name}.{parameter}" in readers:
            return f"its {parameter} is also read in {readers[f'{name}.{parameter}']}"
    return ""


def _own_behaviour(conv: nn.Conv2d) -> str:
    """A subclass or an instance that redefines what a conv computes; one that only adds attributes is plain."""
    if any(name in vars(conv) for name in ("forward", "_conv_forward")):
        return "its forward is replaced on the instance"
    for cls in type(conv).__mro__:
        if cls is nn.Conv2d:
            return ""
        if any(name in vars(cls) for name in _OWN):
            return f"{type(conv).__name__} is a subclass with its own behaviour"
    return ""


def _tied(conv: nn.Conv2d, holders: Mapping[int, Sequence[nn.Module]]) -> str:
    others = [other for parameter in conv.parameters() for other in holders.get(id(parameter), ()) if other is not conv]
    if any(isinstance(other, _CONVS) for other in others):
        return "its weight is tied to another conv's"
    return f"its weight is tied to another module's, a {type(others[0]).__name__}" if others else ""


def _stale_padding(conv: nn.Conv2d, geometry: Geometry) -> str:
    """Torch works out the padding of the modes but zeros once, when a conv is made; attributes set later do nothing."""
    if geometry.padding_mode == "zeros":
        return ""
    with torch.device("meta"):
        fresh = geometry.module()
    if list(fresh._reversed_padding_repeated_twice) == list(conv._reversed_padding_repeated_twice):
        return ""
    return (
        f"its {geometry.padding_mode} padding was changed after it was made, and torch goes on with the old one; "
        "make it anew with the padding it should have"
    )
