"""Hostile nets: what a model of the wild can be, with what should become of it."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

from tests import nets

X = torch.randn(2, 3, 12, 12)
Make = Callable[[], nn.Module]

_HOOKS = "it carries hooks that would be lost"
_OWN = "is a subclass with its own behaviour"
_NOT_RUN = "the forward does not run the module of this name"


def _plain(change: Callable[[nets.Plain], object]) -> Make:
    """A plain net after a change."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        model = nets.Plain()
        change(model)
        return model

    return make


class Body(nets.Plain):
    """Runs `body` in a way of its own."""

    def run(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(F.relu(self.stem(x)))
        return self.head(F.relu(self.down(x)).mean((2, 3)))


class InTuple(Body):
    def __init__(self) -> None:
        super().__init__()
        self.layers = ({"body": [self.body]},)

    def run(self, x: Tensor) -> Tensor:
        return self.layers[0]["body"][0](x)


class Caller:
    """No module, but it holds one."""

    def __init__(self, conv: nn.Module) -> None:
        self.conv = conv

    def __call__(self, x: Tensor) -> Tensor:
        return self.conv(x)


class InObject(Body):
    def __init__(self) -> None:
        super().__init__()
        self.caller = Caller(self.body)

    def run(self, x: Tensor) -> Tensor:
        return self.caller(x)


class InPartial(Body):
    def __init__(self) -> None:
        super().__init__()
        self.caller = functools.partial(self.body)

    def run(self, x: Tensor) -> Tensor:
        return self.caller(x)


class InClosure(Body):
    def __init__(self) -> None:
        super().__init__()
        body = self.body
        self.caller = lambda x: body(x)

    def run(self, x: Tensor) -> Tensor:
        return self.caller(x)


class InWeakref(Body):
    def __init__(self) -> None:
        super().__init__()
        self.reference = weakref.ref(self.body)

    def run(self, x: Tensor) -> Tensor:
        return self.reference()(x)


class Parallel(Body):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.DataParallel(self.body)


class Checkpointed(Body):
    def run(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=False)


class Replaced(Body):
    """Calls a conv with another weight."""

    def run(self, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.body, {"weight": self.body.weight * 2}, (x,))


class WorksInPlace(Body):
    def run(self, x: Tensor) -> Tensor:
        y = self.body(x)
        x.zero_()
        y += 1
        y[:, 0] = 0
        return y.mul_(2).relu_()


class Numpy(Body):
    def run(self, x: Tensor) -> Tensor:
        return self.body(torch.from_numpy(x.numpy() * 2))


class Proxied(nn.Module):
    """Hands every unknown attribute on to the model inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nets.Plain()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Wobbling(nn.Conv2d):
    """A stride that is no attribute."""

    @property
    def stride(self) -> tuple[int, int]:  # type: ignore[override]
        return (1, 1)

    @stride.setter
    def stride(self, value: object) -> None:
        pass


class Doubling(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight * 2, bias)


class Peeking(nn.Conv2d):
    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return value * 2 if name == "weight" else value


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class MakesTensors(Body):
    """Constants that a trace keeps on the side."""

    def run(self, x: Tensor) -> Tensor:
        x = self.body(x) * torch.tensor([2.0]) + torch.arange(x.shape[-1]) * 0.1
        return x * torch.ones(12) + torch.zeros_like(x)


class MakesModules(Body):
    """Layers that live as long as one forward; one of them is as wide as what it gets."""

    def run(self, x: Tensor) -> Tensor:
        x = nn.Sequential(nn.AvgPool2d(2), Squash())(self.body(x))
        return x + nn.AvgPool2d(x.shape[-1])(x)


class Squash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.tanh() if x.dim() == 4 else x


class Wraps(Body):
    """A container made anew around layers of the model."""

    def run(self, x: Tensor) -> Tensor:
        return nn.Sequential(self.body, nn.ReLU())(x)


class Remembers(Body):
    """Caches filled on first use, next to control flow that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.grid: Tensor | None = None
        self.caches = {"deep": [{}]}
        self.holder = Holder()

    def run(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.grid is None:
            self.grid = torch.arange(x.shape[-1]) * 0.1
        scale = self.caches["deep"][0].setdefault("scale", torch.ones(x.shape[-1]) * 2)
        shift = self.holder.kept.setdefault("shift", torch.ones(x.shape[-1]))
        self.holder.last = x
        return x * self.grid * scale + shift if x.sum() > -1e9 else x


class Holder:
    """No module, but it remembers."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}
        self.last: Tensor | None = None


class WritesParameter(Body):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def run(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.mul_(1.5).fill_(2)
        return self.body(x) * self.scale


class WritesData(Body):
    """Max-norm, as braindecode's nets have it, on a layer that is left dense."""

    def run(self, x: Tensor) -> Tensor:
        self.down.weight.data = torch.renorm(self.down.weight.data, p=2, dim=0, maxnorm=0.5)
        self.head.weight.data.clamp_(-0.1, 0.1)
        return self.body(x)


class OddOutput(nets.Plain):
    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return [super().forward(x), None, 3, {"text": "a", "more": (super().forward(x),)}]


class Answers(nets.Plain):
    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x) * 2


def _body(kind: type[nn.Conv2d]) -> Make:
    return _plain(lambda model: setattr(model, "body", kind(16, 16, 3, padding=1, bias=False)))


def _set(**values: Any) -> Make:
    """Attributes of a conv that are set after it was made."""
    return _plain(lambda model: [setattr(model.body, name, value) for name, value in values.items()])


def _circular(**later: Any) -> Make:
    def change(model: nets.Plain) -> None:
        model.body = nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")
        for name, value in later.items():
            setattr(model.body, name, value)

    return _plain(change)


def _run_once(model: nets.Plain) -> None:
    model.last = model.body(model.stem(X))


def _lists_a_tensor(model: nets.Plain) -> None:
    model.cache = {"kept": [model.body(model.stem(X))]}


def _sparse(model: nets.Plain) -> None:
    model.register_buffer("graph", torch.eye(3).to_sparse())


def _tied_elsewhere(model: nets.Plain) -> None:
    model.weights = nn.ParameterDict({"kernel": model.body.weight})


def _pruned(model: nets.Plain) -> None:
    prune.l1_unstructured(model.body, "weight", 0.3)


def _detached_weight(model: nets.Plain) -> None:
    weight = model.body._parameters.pop("weight")
    model.body.register_buffer("weight", weight.detach())


def _hooked(register: str, hook: Callable[..., Any], where: str = "body", **options: Any) -> Make:
    return _plain(lambda model: getattr(model.get_submodule(where), register)(hook, **options))


CONVERTIBLE: dict[str, tuple[Make, dict[str, str]]] = {
    "in a tuple of dicts of lists": (InTuple, {}),
    "in a plain object": (InObject, {}),
    "in a partial": (InPartial, {}),
    "in a closure": (InClosure, {"body": _NOT_RUN}),
    "in a weak reference": (InWeakref, {"body": _NOT_RUN}),
    "inside DataParallel": (Parallel, {}),
    "checkpointed": (Checkpointed, {}),
    "functional_call": (Replaced, {"body": "its weight is also read in"}),
    "in-place work around it": (WorksInPlace, {}),
    "through numpy": (Numpy, {}),
    "a wrapper that hands attributes on": (Proxied, {}),
    "its own __call__": (Answers, {}),
    "odd outputs": (OddOutput, {}),
    "makes tensors": (MakesTensors, {}),
    "makes modules": (MakesModules, {}),
    "wraps its own layers": (Wraps, {}),
    "remembers": (Remembers, {}),
    "writes a parameter": (WritesParameter, {}),
    "writes through .data": (WritesData, {"down": "its weight is also read in"}),
    "expanded buffer": (_plain(lambda model: model.register_buffer("one", torch.ones(()).expand(1))), {}),
    "averaged": (lambda: torch.optim.swa_utils.AveragedModel(nets.Plain()), {}),
    "in training": (lambda: nets.Unreached().train(), {"auxiliary": "the example never reaches it in eval mode"}),
    "forward hook": (_hooked("register_forward_hook", lambda _m, _a, out: out * 2), {"body": _HOOKS}),
    "pre-hook": (_hooked("register_forward_pre_hook", lambda _m, args: (args[0] * 2,)), {"body": _HOOKS}),
    "backward hook": (_hooked("register_full_backward_hook", lambda *_: None), {"body": _HOOKS}),
    "backward pre-hook": (_hooked("register_full_backward_pre_hook", lambda *_: None), {"body": _HOOKS}),
    "state-dict hook": (_hooked("register_state_dict_post_hook", lambda *_: None), {"body": _HOOKS}),
    "load hook": (_hooked("register_load_state_dict_post_hook", lambda *_: None), {"body": _HOOKS}),
    "gradient hook": (_plain(lambda model: model.body.weight.register_hook(lambda g: g)), {"body": _HOOKS}),
    "hooks on the root": (_hooked("register_forward_hook", lambda _m, _a, out: out * 2, ""), {}),
    "pre-hook on the root": (_hooked("register_forward_pre_hook", lambda _m, args: (args[0] * 2,), ""), {}),
    "backward hook on the root": (_hooked("register_full_backward_hook", lambda *_: None, ""), {}),
    "old weight norm": (_plain(lambda model: nn.utils.weight_norm(model.body)), {"body": "computed by a hook"}),
    "old spectral norm": (_plain(lambda model: nn.utils.spectral_norm(model.body)), {"body": "computed by a hook"}),
    "pruned": (_plain(_pruned), {"body": "prune.remove"}),
    "pruned for good": (_plain(lambda model: (_pruned(model), prune.remove(model.body, "weight"))), {}),
    "parametrised bias": (
        _plain(lambda model: parametrize.register_parametrization(model.stem, "bias", Halved())),
        {"stem": "its bias is parametrised"},
    ),
    "weight in a buffer": (_plain(_detached_weight), {"body": "computed by a hook"}),
    "keeps an activation": (_plain(_run_once), {}),
    "keeps activations in a dict": (_plain(_lists_a_tensor), {}),
    "tied to no conv": (_plain(_tied_elsewhere), {"body": "its weight is tied to another module's, a ParameterDict"}),
    "sparse buffer": (_plain(_sparse), {}),
    "circular": (_circular(), {}),
    "circular, made zeros": (_circular(padding_mode="zeros"), {}),
    "circular, padding changed": (_circular(padding=(2, 2)), {"body": "its circular padding was changed after"}),
    "circular, padding in words": (_circular(padding="valid"), {"body": "its circular padding was changed after"}),
    "padding changed": (_set(padding=(2, 2)), {}),
    "mode changed": (
        _set(padding_mode="reflect", padding=(2, 2)),
        {"body": "its reflect padding was changed after it was made"},
    ),
    "stride is a property": (_body(Wobbling), {"body": _OWN}),
    "own _conv_forward": (_body(Doubling), {"body": _OWN}),
    "own __getattribute__": (_body(Peeking), {"body": _OWN}),
    "frozen": (_plain(lambda model: model.requires_grad_(False)), {}),
    "no weight": (_plain(lambda model: nn.init.zeros_(model.body.weight)), {}),
    "expanded weight": (
        _plain(lambda m: setattr(m.body, "weight", nn.Parameter(torch.randn(1, 16, 3, 3).expand(16, 16, 3, 3)))),
        {},
    ),
}
"""Name -> a net that takes X, and the convs that must be skipped with a part of the reason."""


def _shadowed(name: str, where: str = "") -> Make:
    return _plain(lambda model: setattr(model.get_submodule(where), name, []))


def _quantised() -> nn.Module:
    stubs = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
    model = nn.Sequential(stubs[0], nn.Conv2d(3, 8, 3), stubs[1]).eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    model = torch.ao.quantization.prepare(model)
    model(X)
    return torch.ao.quantization.convert(model)


def _compiled_forward(model: nets.Plain) -> None:
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]


def _deep() -> nn.Module:
    model: nn.Module = nn.Conv2d(3, 3, 3, padding=1)
    for _ in range(2000):
        model = nn.Sequential(model)
    return model


def _lazy(layer: nn.Module) -> Make:
    return lambda: nn.Sequential(nn.Conv2d(3, 4, 3), layer)


def _exported() -> Any:
    return torch.export.export(nets.Plain().eval(), (X,))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    **{
        f"{name} shadowed": (_shadowed(name), f"has an attribute named '{name}', which hides torch's method; rename it")
        for name in ("modules", "named_modules", "parameters", "named_parameters", "buffers", "named_buffers")
    },
    "modules shadowed inside": (_shadowed("modules", "body"), "model: body has an attribute named 'modules'"),
    "lazy conv": (_lazy(nn.LazyConv2d(4, 3)), r"1.weight is lazy and has no shape yet; run the model once"),
    "lazy linear": (_lazy(nn.LazyLinear(4)), r"1.weight is lazy and has no shape yet"),
    "lazy norm": (_lazy(nn.LazyBatchNorm2d()), r"1.weight is lazy and has no shape yet"),
    "lock": (_plain(lambda model: setattr(model, "lock", threading.Lock())), "cannot be copied .*_thread.lock"),
    "generator": (_plain(lambda model: setattr(model, "rows", (i for i in ()))), "generator"),
    "quantised": (_quantised, "model: 1 is a quantised Conv2d; pass the float model and quantise the result"),
    "compiled": (lambda: torch.compile(nets.Plain(), backend="eager"), "pass model._orig_mod and compile the result"),
    "forward compiled": (_plain(_compiled_forward), "its forward is compiled by torch.compile; del model.forward"),
    "scripted": (lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 3))), "it is a TorchScript module"),
    "scripted inside": (
        _plain(lambda model: setattr(model, "body", torch.jit.script(model.body))),
        "body is a TorchScript module",
    ),
    "DataParallel": (lambda: nn.DataParallel(nets.Plain()), "wrapped in DataParallel; pass model.module"),
    "exported program": (_exported, "expected a torch.nn.Module, got ExportedProgram"),
    "exported module": (lambda: _exported().module(), "a graph of operators, as torch.export makes it"),
    "unflattened": (lambda: torch.export.unflatten(_exported()), "a graph of operators, as torch.export makes it"),
    "half on meta": (_plain(lambda model: model.body.to("meta")), "body.weight is on the meta device and other"),
    "deep": (_deep, "nested too deeply"),
    "no module": (lambda: len, "expected a torch.nn.Module"),
}
"""Name -> a model that is turned away, and what must be said."""
