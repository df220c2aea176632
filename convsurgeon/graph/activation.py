"""Elementwise activations: read from a node of a graph, applied to rows of samples, with their slopes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.GELU, nn.ELU, nn.CELU, nn.SELU, nn.Mish),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus),
)
_FUNCTIONS = {
    *(F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.silu, F.hardswish, F.gelu, F.elu, F.celu),
    *(F.selu, F.mish, F.hardtanh, F.hardsigmoid, F.sigmoid, torch.sigmoid, F.tanh, torch.tanh, F.softplus),
}
_METHODS = {"relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"}


@dataclass(frozen=True)
class Activation:
    """A function of single values; `slopes` (O,) are those of a PReLU below zero, which differ from channel to channel.

    Args:
        function: any shape to the same; it may work in place.
        slopes: one per channel, or none.
    """

    function: Callable[[Tensor], Tensor]
    slopes: tuple[Tensor, ...] = ()

    def __call__(self, values: Tensor) -> Tensor:
        """Of rows (S, O)."""
        if self.slopes:
            return torch.where(values > 0, values, values * self.slopes[0])
        return self.function(values.clone())

    def of(self, channels: slice) -> Activation:
        """For some of the channels."""
        return Activation(self.function, tuple(slopes[channels] for slopes in self.slopes))

    def slope(self, values: Tensor) -> Tensor:
        """Its derivative at rows (S, O)."""
        with torch.enable_grad():
            leaf = values.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self(leaf).sum(), leaf)
        return slope


def activation_of(node: fx.Node, root: nn.Module, channels: int) -> Activation | None:
    """The activation that a node applies to a value of so many channels, or None."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if type(module) is nn.PReLU:
            return Activation(module, (module.weight.detach().float().expand(channels),))
        return Activation(module) if type(module) in _MODULES else None
    rest, named = node.args[1:], node.kwargs
    if any(isinstance(item, fx.Node) for item in (*rest, *named.values())):
        return None
    if node.op == "call_function" and node.target in _FUNCTIONS:
        assert callable(node.target)
        target = node.target
        return Activation(lambda values: target(values, *rest, **named))
    if node.op == "call_method" and node.target in _METHODS:
        return Activation(partial(_called, str(node.target)))
    return None


def _called(method: str, values: Tensor) -> Tensor:
    found: Tensor = getattr(values, method)()
    return found
