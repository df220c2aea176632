"""What stands behind a conv in the graph: the batch norm that scales it, the shortcut that is added, the activation.

    y -> z = scale * y + shift (+ shortcut) -> activation(z)

A fit that knows them can aim at what the network makes of the conv's output instead of at the output itself.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from convsurgeon.forms.as_conv import Conv1dAsConv, LinearAsConv

_Norm = nn.BatchNorm2d | nn.BatchNorm1d
_NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)
_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.GELU, nn.ELU, nn.CELU, nn.SELU, nn.Mish),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus),
)
_FUNCTIONS = {
    *(F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.silu, F.hardswish, F.gelu, F.elu, F.celu),
    *(F.selu, F.mish, F.hardtanh, F.hardsigmoid, F.sigmoid, torch.sigmoid, F.tanh, torch.tanh, F.softplus),
}
_METHODS = {"relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"}
_ADDITIONS = {operator.add, operator.iadd, torch.add}


@dataclass(frozen=True)
class Activation:
    """A function of single values, which may work in place; `slopes` (O,) are those of a PReLU below zero."""

    function: Callable[[Tensor], Tensor]
    slopes: Tensor | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Return its values at rows (S, O)."""
        if self.slopes is not None:
            return torch.where(values > 0, values, values * self.slopes)
        return self.function(values.clone())

    def of(self, channels: slice) -> Activation:
        """Return the activation of some of the channels."""
        return Activation(self.function, None if self.slopes is None else self.slopes[channels])

    def slope(self, values: Tensor) -> Tensor:
        """Return its derivative at rows (S, O)."""
        with torch.enable_grad():
            leaf = values.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self(leaf).sum(), leaf)
        return slope


@dataclass(frozen=True)
class Neighbours:
    """What stands behind a conv; None where there is no such thing.

    The batch norm `norm` has scale and shift (O,), ones and zeros where there is none; then come the node of a shortcut
    that is added, and an activation. `end` is the last node of these.
    """

    scale: Tensor
    shift: Tensor
    norm: str | None = None
    shortcut: fx.Node | None = None
    activation: Activation | None = None
    end: fx.Node | None = None


def callers(graph: fx.Graph, root: nn.Module) -> Counter[nn.Module]:
    """Count the nodes that call each module, aliases together."""
    return Counter(root.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module")


def neighbours(node: fx.Node, root: nn.Module, conv: nn.Conv2d, calls: Counter[nn.Module]) -> Neighbours:
    """Read what follows a conv's node, as long as each value has one reader only; `calls` is from `callers`."""
    bare = alone(conv)
    scale, shift, norm, shortcut = bare.scale, bare.shift, None, None
    follower, in_rows = _only_user(node), False
    while follower is not None and _reshapes(follower, Conv1dAsConv):  # the channels stay where they are
        node, follower, in_rows = follower, _only_user(follower), True
    if follower is not None and (module := _frozen_norm(follower, root, calls)) is not None:
        scale, shift = affine(module)
        norm, node = str(follower.target), follower
        follower = _only_user(node)
    if follower is not None and not in_rows and (other := _added(follower, node)) is not None:
        shortcut, node = other, follower
        follower = _only_user(node)
    while follower is not None and _reshapes(follower, LinearAsConv):  # whose values are the conv's, in another order
        follower = _only_user(follower)
    found = None if follower is None else _activation_of(follower, root, conv.out_channels)
    return Neighbours(scale, shift, norm, shortcut, found, node if found is None else follower)


def alone(conv: nn.Conv2d) -> Neighbours:
    """Return the neighbours of a conv of which nothing is known but itself."""
    weight = conv.weight.detach().float()
    return Neighbours(weight.new_ones(conv.out_channels), weight.new_zeros(conv.out_channels))


def affine(norm: _Norm) -> tuple[Tensor, Tensor]:
    """Return a batch norm in eval mode as scale and shift (C,) in float32: `z = scale * y + shift`."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale * norm.weight if norm.weight is not None else scale
    shift = -norm.running_mean * scale
    shift = shift + norm.bias if norm.bias is not None else shift
    return scale.detach().float(), shift.detach().float()


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _reshapes(node: fx.Node, layer: type[nn.Module]) -> bool:
    """Return whether a node is what such a layer does behind its conv."""
    scopes = list((node.meta.get("nn_module_stack") or {}).values())
    return node.op == "call_method" and bool(scopes) and scopes[-1][1] is layer


def _frozen_norm(node: fx.Node, root: nn.Module, calls: Counter[nn.Module]) -> _Norm | None:
    """Return the batch norm that a node calls, if it has statistics of its own and no other caller."""
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    if not isinstance(module, _Norm) or type(module) not in _NORMS or module.running_mean is None or calls[module] != 1:
        return None
    return module


def _added(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """Return the other summand, where a node adds two nodes of which `value` is one."""
    by_function = node.op == "call_function" and node.target in _ADDITIONS
    by_method = node.op == "call_method" and node.target in ("add", "add_")
    if not (by_function or by_method) or len(node.args) != 2 or node.kwargs:
        return None
    others = [item for item in node.args if item is not value]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


def _activation_of(node: fx.Node, root: nn.Module, channels: int) -> Activation | None:
    """Return the activation that a node applies to a value of so many channels; None where it is something else."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if type(module) is nn.PReLU:
            return Activation(module, module.weight.detach().float().expand(channels))
        return Activation(module) if type(module) in _MODULES else None
    rest, named = node.args[1:], node.kwargs
    if any(isinstance(item, fx.Node) for item in (*rest, *named.values())):
        return None
    if node.op == "call_function" and node.target in _FUNCTIONS:
        assert callable(node.target)
        target = node.target
        return Activation(lambda values: target(values, *rest, **named))
    if node.op == "call_method" and node.target in _METHODS:
        return Activation(operator.methodcaller(str(node.target)))
    return None
