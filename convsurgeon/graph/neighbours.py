"""What stands behind a conv in the graph: the batch norm that scales it, the shortcut that is added, the activation.

    y -> z = scale * y + shift (+ shortcut) -> activation(z)

A fit that knows them can aim at what the network makes of the conv's output instead of at the output itself.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from convsurgeon.graph.activation import Activation, activation_of
from convsurgeon.graph.linear import LinearAsConv

_ADDITIONS = {operator.add, operator.iadd, torch.add}


@dataclass(frozen=True)
class Neighbours:
    """Scale and shift (O,) of the batch norm, ones and zeros where there is none; the other side of an addition.

    `norm` is the batch norm's name, `shortcut` the node that is added, `activation` what follows, and `end` the last of
    these nodes: empty tuples where there is none.
    """

    scale: Tensor
    shift: Tensor
    norm: tuple[str, ...]
    shortcut: tuple[fx.Node, ...]
    activation: tuple[Activation, ...]
    end: tuple[fx.Node, ...]


def callers(graph: fx.Graph, root: nn.Module) -> Counter[nn.Module]:
    """How many nodes call each module, aliases counted together."""
    return Counter(root.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module")


def neighbours(node: fx.Node, root: nn.Module, conv: nn.Conv2d, calls: Counter[nn.Module]) -> Neighbours:
    """Reads what follows a conv's node, as long as each value has one reader only; `calls` is from `callers`."""
    scale, shift = _nothing(conv)
    norm: tuple[str, ...] = ()
    shortcut: tuple[fx.Node, ...] = ()
    follower = _only_user(node)
    if follower is not None and (module := _frozen_norm(follower, root, calls)) is not None:
        scale, shift = affine(module)
        norm, node = (str(follower.target),), follower
        follower = _only_user(node)
    if follower is not None and (other := _added(follower, node)) is not None:
        shortcut, node = (other,), follower
        follower = _only_user(node)
    while follower is not None and _reshapes_a_linear(follower):  # whose values are the conv's, in another order
        follower = _only_user(follower)
    found = None if follower is None else activation_of(follower, root, conv.out_channels)
    if follower is not None and found is not None:
        node = follower
    return Neighbours(scale, shift, norm, shortcut, () if found is None else (found,), (node,))


def alone(conv: nn.Conv2d) -> Neighbours:
    """A conv of which nothing is known but itself."""
    return Neighbours(*_nothing(conv), (), (), (), ())


def _nothing(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Scale and shift (O,) of nothing at all, where the conv is."""
    weight = conv.weight.detach().float()
    return weight.new_ones(conv.out_channels), weight.new_zeros(conv.out_channels)


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as scale and shift (C,) in float32: `z = scale * y + shift`."""
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


def _reshapes_a_linear(node: fx.Node) -> bool:
    """Whether a node is what `LinearAsConv` does behind its conv."""
    scopes = list((node.meta.get("nn_module_stack") or {}).values())
    return node.op == "call_method" and bool(scopes) and scopes[-1][1] is LinearAsConv


def _frozen_norm(node: fx.Node, root: nn.Module, calls: Counter[nn.Module]) -> nn.BatchNorm2d | None:
    """The batch norm a node calls, if it has statistics of its own and no other caller."""
    if node.op != "call_module":
        return None
    module = root.get_submodule(str(node.target))
    plain = type(module) is nn.BatchNorm2d and module.running_mean is not None and calls[module] == 1
    return module if isinstance(module, nn.BatchNorm2d) and plain else None


def _added(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """The other summand, where a node adds two nodes of which `value` is one."""
    by_function = node.op == "call_function" and node.target in _ADDITIONS
    by_method = node.op == "call_method" and node.target in ("add", "add_")
    if not (by_function or by_method) or len(node.args) != 2 or node.kwargs:
        return None
    others = [item for item in node.args if item is not value]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None
