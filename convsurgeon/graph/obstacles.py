"""What stands in the way: models that cannot be captured, and layers that are more than their geometry says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx, jit, nn
from torch._ops import OpOverload
from torch.nn.utils import parametrize, prune
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from convsurgeon.base.errors import CaptureError
from convsurgeon.forms.as_conv import transposed_obstacle
from convsurgeon.forms.geometry import Geometry
from convsurgeon.graph.example import Example, is_plain

_CONVS = nn.modules.conv._ConvNd
_Plain = nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d
_ASKED = ("modules", "named_modules", "parameters", "named_parameters", "buffers", "named_buffers")
"""Methods of a module that everything here, and torch itself, relies on."""


def check_module(model: object) -> None:
    """Refuse what is not a module."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise CaptureError(
            f"model: expected a torch.nn.Module, got {got}; build the network and load its weights into it"
        )


def check_model(model: nn.Module) -> None:
    """Refuse wrappers of a model, compiled and quantised layers, and objects that are not modules."""
    check_module(model)
    if hasattr(model, "_orig_mod"):
        raise CaptureError("model: it is compiled by torch.compile; pass model._orig_mod and compile the result")
    if hasattr(vars(model).get("forward"), "_torchdynamo_orig_callable"):
        raise CaptureError("model: its forward is compiled by torch.compile; del model.forward and compile the result")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise CaptureError(f"model: it is wrapped in {type(model).__name__}; pass model.module and wrap the result")
    _refuse_exported(model)
    if isinstance(model, _CONVS):
        raise CaptureError(f"model: it is a bare {type(model).__name__}; wrap it in nn.Sequential")
    for name, module in _named_modules(model):
        where, kind = f"model: {name or 'it'}", type(module)
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise CaptureError(f"{where} is compiled; pass the model from before, and compile the result")
        if isinstance(module, jit.ScriptModule):
            raise CaptureError(f"{where} is a TorchScript module, whose layers are compiled; put back the original")
        if "quantized" in kind.__module__ and hasattr(module, "_packed_params") and hasattr(module, "kernel_size"):
            raise CaptureError(f"{where} is a quantised {kind.__name__}; pass the float model and quantise the result")
    for name, parameter in model.named_parameters():
        if is_traceable_wrapper_subclass(parameter):
            raise CaptureError(
                f"model: {name} is a {type(parameter).__name__}, quantised (torchao) or sharded, which few operators "
                "know; pass the plain float model, then quantise or shard the result"
            )
    lazy = [name for name, parameter in model.named_parameters() if nn.parameter.is_lazy(parameter)]
    if lazy:
        raise CaptureError(f"model: {lazy[0]} is lazy and has no shape yet; run the model once on an example first")
    if len({parameter.is_meta for parameter in model.parameters()}) > 1:
        part = next(name for name, parameter in model.named_parameters() if parameter.is_meta)
        raise CaptureError(f"model: {part} is on the meta device and other parameters are not; load all or none")


def check_example(example: Example) -> None:
    """Refuse tensors that are not arrays.

    Raises:
        CaptureError: one is sparse or nested.
    """
    for tensor in example.tensors():
        if not is_plain(tensor):
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise CaptureError(f"example: it holds a {kind} tensor; pass a plain one (tensor.to_dense())")


def _refuse_exported(model: nn.Module) -> None:
    """Refuse graphs of operators, such as those of torch.export, which hold no conv modules."""
    nodes = model.graph.nodes if isinstance(model, fx.GraphModule) else ()
    convs = any(isinstance(node.target, OpOverload) and "conv" in node.target.name() for node in nodes)
    if convs or type(model).__module__.startswith("torch.export"):
        raise CaptureError(
            "model: it is a graph of operators, as torch.export makes it, without conv modules; "
            "pass the model it was exported from and export the result"
        )


def _named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules, once it is sure that they can be listed."""
    for path, module in _walk(model):
        if not path.isascii() and path != path.encode("utf-8", "replace").decode():
            raise CaptureError(f"model: {path!r} holds half of a character, which no file can hold; rename it")
        for name in _ASKED:
            if name in vars(module) and not callable(vars(module)[name]):
                raise CaptureError(
                    f"model: {path or 'it'} has an attribute named {name!r}, which hides torch's method; rename it"
                )
    try:
        return list(model.named_modules(remove_duplicate=False))
    except RecursionError:
        raise CaptureError("model: its modules are nested too deeply for Python to walk; flatten them") from None


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module under every name, by torch's own bookkeeping and none of its methods."""
    waiting = [("", model, frozenset[int]())]
    while waiting:
        path, module, above = waiting.pop()
        if id(module) in above:
            raise CaptureError("model: one of its modules contains itself; keep references to a parent elsewhere")
        yield path, module
        children = [(name, child) for name, child in module._modules.items() if child is not None]
        inside = above | {id(module)} if children else above
        waiting += [(f"{path}.{name}" if path else name, child, inside) for name, child in reversed(children)]


_OWN = (
    *("forward", "_conv_forward", "__call__", "_call_impl", "__getattr__", "__getattribute__", "weight", "bias"),
    *("stride", "padding", "dilation", "groups", "padding_mode", "_reversed_padding_repeated_twice"),
)
_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
_LEFT = ("_weight_norm_compat_hook", "SpectralNormLoadStateDictPreHook")
_GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def module_obstacle(conv: _CONVS, holders: Mapping[int, Sequence[nn.Module]]) -> str:
    """Why a conv module of any kind cannot be rewritten whatever the form; empty where it can.

    `holders` are the modules that hold each parameter, by `id`.
    """
    if not isinstance(conv, nn.Conv2d):
        why = transposed_obstacle(conv) if isinstance(conv, nn.ConvTranspose2d) else ""
        return f"{type(conv).__name__}: {why or 'only Conv2d is rewritten'}"
    if held := _more_than_weights(conv, nn.Conv2d):
        return held
    geometry = Geometry.of(conv)
    if conv.weight.shape != (geometry.out_channels, geometry.in_per_group, *geometry.kernel_size):
        return f"its weight has shape {tuple(conv.weight.shape)}, which is not what its attributes say"
    if padding := _stale_padding(conv, geometry):
        return padding
    return _tied(conv, holders) or _whole_numbers(conv)


def plain_obstacle(
    layer: nn.Linear | nn.Conv1d | nn.ConvTranspose2d,
    plain: type[nn.Module],
    holders: Mapping[int, Sequence[nn.Module]],
) -> str:
    """Why a layer is more than the weights of its plain class, so that no conv can take its place; empty if not."""
    return _more_than_weights(layer, plain) or _tied(layer, holders) or _whole_numbers(layer)


def holders_of(model: nn.Module) -> dict[int, list[nn.Module]]:
    """Return the modules that hold each parameter, by the parameter's `id`."""
    holders: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append(module)
    return holders


def reading_obstacle(conv: _CONVS, name: str, readers: Mapping[str, str]) -> str:
    """Whether something else than the conv reads its weight; `readers` maps parameter names to who."""
    for parameter, _ in conv.named_parameters(recurse=False):
        if f"{name}.{parameter}" in readers:
            return f"its {parameter} is also read in {readers[f'{name}.{parameter}']}"
    return ""


def _more_than_weights(layer: nn.Module, plain: type[nn.Module]) -> str:
    """Return what a layer has beyond the weights of the plain class, and would lose."""
    if parametrize.is_parametrized(layer):
        names = ", ".join(layer.parametrizations)  # type: ignore[arg-type]
        return f"its {names} is parametrised; call torch.nn.utils.parametrize.remove_parametrizations on it first"
    if layer._parameters.get("weight") is None:
        return f"its weight is computed by {_computed_by(layer)}"
    if own := _own_behaviour(layer, plain):
        return own
    if any(not _left_by_torch(hook) for name in _HOOKS for hook in getattr(layer, name).values()) or any(
        getattr(parameter, name, None) for parameter in layer.parameters(recurse=False) for name in _GRADIENT_HOOKS
    ):
        return "it carries hooks that would be lost; remove them first"
    if layer._buffers or layer._modules or set(layer._parameters) - {"weight", "bias"}:
        return "it holds buffers, parameters or modules of its own that would be lost"
    return ""


def _left_by_torch(hook: object) -> bool:
    """Return whether a hook is one that torch leaves on a layer whose weight norm or spectral norm is removed."""
    inner = getattr(hook, "hook", hook)
    return getattr(inner, "__name__", type(inner).__name__) in _LEFT


def _computed_by(layer: nn.Module) -> str:
    """Return the hook that computes a layer's weight, and what makes it plain."""
    hooks = [type(hook) for hook in layer._forward_pre_hooks.values()]
    if any(issubclass(kind, prune.BasePruningMethod) for kind in hooks):
        return "a pruning mask; call torch.nn.utils.prune.remove(layer, 'weight') first"
    names = ", ".join(kind.__name__ for kind in hooks) or "of its own"
    return f"a hook ({names}); call torch.nn.utils.remove_weight_norm or remove_spectral_norm on it first"


def _own_behaviour(layer: nn.Module, plain: type[nn.Module]) -> str:
    """Return why a layer computes something else than its plain class; empty if it does not."""
    if any(name in vars(layer) for name in ("forward", "_conv_forward")):
        return "its forward is replaced on the instance, as by hooks of accelerate (remove_hook_from_module)"
    for cls in type(layer).__mro__:
        if cls is plain:
            return ""
        if ".qat." in cls.__module__:
            return (
                "it is a layer of quantisation-aware training; convert the float model and prepare the result for that"
            )
        if any(name in vars(cls) for name in _OWN):
            return f"{type(layer).__name__} is a subclass with its own behaviour"
    return ""


def _whole_numbers(layer: _Plain) -> str:
    dtype = layer.weight.dtype
    return "" if dtype.is_floating_point else f"its weight is {str(dtype).removeprefix('torch.')}"


def _tied(layer: nn.Module, holders: Mapping[int, Sequence[nn.Module]]) -> str:
    held = (other for parameter in layer.parameters() for other in holders.get(id(parameter), ()))
    others = [other for other in held if other is not layer]
    if isinstance(layer, _CONVS) and any(isinstance(other, _CONVS) for other in others):
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
