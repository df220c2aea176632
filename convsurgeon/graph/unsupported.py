"""Models that are turned away before anything is tried, each with the one line that says what to pass instead."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, jit, nn
from torch._ops import OpOverload

from convsurgeon.base.errors import CaptureError

_CONVS = nn.modules.conv._ConvNd
_ASKED = ("modules", "named_modules", "parameters", "named_parameters", "buffers", "named_buffers")
"""Methods of a module that everything here, and torch itself, relies on."""


def refuse(model: object) -> None:
    """Turns away wrappers, whose inner model is what can be rewritten, compiled and quantised layers, and non-modules.

    Raises:
        CaptureError: always with what to do next.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    _refuse_wrappers(model)
    _refuse_exported(model)
    if isinstance(model, _CONVS):
        raise CaptureError(f"model: it is a bare {type(model).__name__}; wrap it in nn.Sequential")
    for name, module in _named_modules(model):
        if reason := _layer(module):
            raise CaptureError(f"model: {name or 'it'} {reason}")
    lazy = [name for name, parameter in model.named_parameters() if nn.parameter.is_lazy(parameter)]
    if lazy:
        raise CaptureError(f"model: {lazy[0]} is lazy and has no shape yet; run the model once on an example first")
    devices = {parameter.is_meta for parameter in model.parameters()}
    if len(devices) > 1:
        part = next(name for name, parameter in model.named_parameters() if parameter.is_meta)
        raise CaptureError(f"model: {part} is on the meta device and other parameters are not; load all or none")


def _refuse_wrappers(model: nn.Module) -> None:
    if hasattr(model, "_orig_mod"):
        raise CaptureError("model: it is compiled by torch.compile; pass model._orig_mod and compile the result")
    if hasattr(vars(model).get("forward"), "_torchdynamo_orig_callable"):
        raise CaptureError("model: its forward is compiled by torch.compile; del model.forward and compile the result")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise CaptureError(f"model: it is wrapped in {type(model).__name__}; pass model.module and wrap the result")


def _refuse_exported(model: nn.Module) -> None:
    """What torch.export makes holds operators and no conv modules; so does any graph of operators."""
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
            raise CaptureError(
                "model: one of its modules contains itself; keep references to a parent out of the modules"
            )
        yield path, module
        children = [(name, child) for name, child in module._modules.items() if child is not None]
        inside = above | {id(module)} if children else above
        waiting += [(f"{path}.{name}" if path else name, child, inside) for name, child in reversed(children)]


def _layer(module: nn.Module) -> str:
    """Why a model with this module in it is turned away; empty for all others."""
    if isinstance(module, jit.ScriptModule):
        return "is a TorchScript module, whose layers are compiled; put back the original"
    if "quantized" in type(module).__module__ and hasattr(module, "_packed_params") and hasattr(module, "kernel_size"):
        return f"is a quantised {type(module).__name__}; pass the float model and quantise the result"
    return ""
