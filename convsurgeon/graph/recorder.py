"""Record one run of a model: what every conv sees, wherever it runs, and who else reads its weight.

Module hooks see every conv, also inside untraced regions and in modules kept in plain lists; a function mode sees
convs that are called as functions. Both heed the recorder's own thread alone, and nothing of them stays.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from convsurgeon.forms.geometry import Geometry
from convsurgeon.graph.cost import MacCounter
from convsurgeon.graph.site import Call, Site
from convsurgeon.onnxnet.modules import Subgraph

_CONVS = nn.modules.conv._ConvNd

CONV_FUNCTIONS = {
    torch.conv1d: 1,
    torch.conv2d: 2,
    torch.conv3d: 3,
    torch.conv_transpose1d: -1,
    torch.conv_transpose2d: -2,
    torch.conv_transpose3d: -3,
    torch.ops.aten.conv1d.default: 1,
    torch.ops.aten.conv2d.default: 2,
    torch.ops.aten.conv2d.padding: 2,
    torch.ops.aten.conv3d.default: 3,
}
"""The functional convs and their dimensions, negative where transposed."""


class Recorder(TorchFunctionMode):
    """What one run of a model shows.

    Attributes:
        scope: path of the module that is being interpreted, for calls that no module makes.
        calls: of every conv module that ran, by `id`, in the order of their first calls.
        conv_macs: of those.
        functional: sites of convs that are called as functions, by name.
        unregistered: convs that run and are not the model's modules, by `id`, with where.
        readers: names of convs' parameters that something else reads, with where.
    """

    def __init__(self, model: nn.Module, counter: MacCounter) -> None:
        super().__init__()
        self.scope = ""
        self.calls: dict[int, list[Call]] = {}
        self.conv_macs: Counter[int] = Counter()
        self.functional: dict[str, Site] = {}
        self.unregistered: dict[int, tuple[_CONVS, str]] = {}
        self.readers: dict[str, str] = {}
        self._counter, self._thread = counter, threading.get_ident()
        self._running: list[tuple[nn.Module, int]] = []  # with the MACs at its start
        self._names = {id(tensor): name for name, tensor in model.named_parameters()}
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._owners = {
            id(parameter): module
            for module in model.modules()
            if isinstance(module, _CONVS)
            for parameter in module.parameters(recurse=False)
        }

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what runs inside the block."""
        before = hooks.register_module_forward_pre_hook(self._enter)
        after = hooks.register_module_forward_hook(self._leave, with_kwargs=True)
        try:
            with self:
                yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() == self._thread:
            self._running.append((module, self._counter.macs))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        running, start = self._running.pop()
        while running is not module:  # one whose forward raised, which was caught
            running, start = self._running.pop()
        if isinstance(module, Subgraph):
            self._counter.macs += module.macs
        if isinstance(module, _CONVS) and isinstance(output, Tensor):
            value = args[0] if args else kwargs["input"]
            if id(module) not in self._paths:
                self.unregistered.setdefault(id(module), (module, self._where()))
            self.calls.setdefault(id(module), []).append(Call(tuple(value.shape), tuple(output.shape)))
            self.conv_macs[id(module)] += self._counter.macs - start

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inside = next((module for module, _ in reversed(self._running) if isinstance(module, _CONVS)), None)
        for value in (*args, *kwargs.values()):
            owner = self._owners.get(id(value))
            if owner is not None and owner is not inside:
                self.readers.setdefault(self._names[id(value)], self._where())
        start = self._counter.macs
        out = func(*args, **kwargs)
        if func in CONV_FUNCTIONS and inside is None:
            self._note_function(CONV_FUNCTIONS[func], args, kwargs, out, self._counter.macs - start)
        return out

    def _where(self) -> str:
        """Return the path of the module that is running."""
        path = self._paths.get(id(self._running[-1][0]), "") if self._running else self.scope
        return path or "the model's own forward"

    def _note_function(
        self, dimensions: int, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor, macs: int
    ) -> None:
        """Note a call of a functional conv; `dimensions` < 0 means transposed."""
        value = args[0] if args else kwargs["input"]
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        kind = "F.conv" if dimensions > 0 else "F.conv_transpose"
        name = self._names.get(id(weight)) or f"{self._where()}:{kind}"
        call = Call(tuple(value.shape), tuple(out.shape))
        known = self.functional.get(name)
        if known is not None:
            self.functional[name] = replace(known, calls=(*known.calls, call), macs=known.macs + macs)
            return
        geometry = _geometry_of_call(dimensions, weight, args, kwargs)
        kind = f"{kind}{abs(dimensions)}d"
        why = f"called as {kind} in {self._where()}; make it an nn.Conv2d module to have it rewritten"
        self.functional[name] = Site(name, (), kind, geometry, (call,), geometry.params, macs, 0.0, why)


def _geometry_of_call(dimensions: int, weight: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry:
    """Return the geometry of a functional call, from its arguments by position or name."""
    late = ("dilation", "groups") if dimensions > 0 else ("output_padding", "groups", "dilation")
    given = dict(zip(("input", "weight", "bias", "stride", "padding", *late), args, strict=False)) | kwargs
    groups, padding = given.get("groups", 1), given.get("padding", 0)
    channels = (weight.shape[0], weight.shape[1] * groups)

    def per_axis(value: Any) -> tuple[int, ...]:
        values = tuple(value) if isinstance(value, tuple | list) else (value,)
        return values * abs(dimensions) if len(values) == 1 else values

    return Geometry(
        in_channels=channels[dimensions > 0],
        out_channels=channels[dimensions < 0],
        kernel_size=tuple(weight.shape[2:]),
        stride=per_axis(given.get("stride", 1)),
        padding=padding if isinstance(padding, str) else per_axis(padding),
        dilation=per_axis(given.get("dilation", 1)),
        groups=groups,
        padding_mode="zeros",
        bias=given.get("bias") is not None,
        transposed=dimensions < 0,
    )
