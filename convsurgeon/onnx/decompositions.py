"""Take torch's operators apart into those that ONNX has, in the captured graph itself.

For this torch's exporter runs the graph once more with symbols, half of an export's time. A trained CNN mostly needs no
more than the rules below; where they do not do, and with a torch that goes about it differently, torch does it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import fx

_Rule = Callable[[fx.Node], None]
_ATEN = torch.ops.aten
_BATCH_NORM = _ATEN._native_batch_norm_legit_no_training.default
_FRESH = {
    *(_ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.conv_transpose2d.input, _ATEN.linear.default),
    *(_ATEN.batch_norm.default, _ATEN.add.Tensor, _ATEN.mul.Tensor, _ATEN.cat.default),
}
"""Operators whose output shares its memory with no other value."""


@contextmanager
def decomposed_in_place() -> Iterator[None]:
    """Have torch's exporter take operators apart in the graph, where the rules do, in place of running it again."""
    try:
        from torch.onnx._internal.exporter import _decomp, _fx_passes

        by_torch, names = _fx_passes.decompose_with_registry, _decomp.get_onnx_implemented_overloads
        table = _decomp.create_onnx_friendly_decomposition_table
    except (ImportError, AttributeError):
        yield
        return

    def decompose(program: Any, registry: Any) -> Any:
        written = set(names(registry))
        if not _decomposed(program.graph_module.graph, written - table(written).keys()):
            return by_torch(program, registry)
        for spec, made in zip(program.graph_signature.output_specs, program.graph.output_node().args[0], strict=True):
            if isinstance(made, fx.Node):
                spec.arg.name = made.name
        return program

    with patch.object(_fx_passes, "decompose_with_registry", decompose):
        yield


def _decomposed(graph: fx.Graph, known: set[Any]) -> bool:
    """Leave only operators that are `known` and write into no value; where rules do not do, change nothing: False."""
    found: dict[fx.Node, _Rule] = {}
    own: set[fx.Node] = set()  # whose memory no other value has a part of
    for node in graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if not isinstance(node.target, torch._ops.OpOverload):
            return False
        mutable, lent = node.target._schema.is_mutable, _lends(node.target)
        rule = _rule(node) or (_out_of_place(node, known) if mutable and node.args[0] in own else None)
        if rule is None and (mutable or lent or node.target not in known):
            return False
        if rule is not None:
            found[node] = rule
        if mutable or node.target in _FRESH:
            own.add(node)
    for node, rule in found.items():
        rule(node)
    return True


def _lends(target: Any) -> bool:
    """Return whether torch takes an operator apart because its output may share its input's memory."""
    return target._can_decompose() and any(one.alias_info is not None for one in target._schema.returns)


def _rule(node: fx.Node) -> _Rule | None:
    """Return how an operator is taken apart, as torch would."""
    args = node.args
    if node.kwargs:
        return None
    if node.target is _ATEN.batch_norm.default and args[5] is False and None not in args[3:5]:
        return _batch_norm
    if node.target is _ATEN.adaptive_avg_pool2d.default and list(args[1]) == [1, 1]:  # type: ignore[arg-type]
        return _mean if args[0].meta["val"].is_contiguous() else None  # type: ignore[union-attr]
    if node.target is _ATEN.flatten.using_ints and all(isinstance(size, int) for size in node.meta["val"].shape):
        return _view
    if node.target is _ATEN.dropout.default and args[2] is False:
        return _copy
    return None


def _out_of_place(node: fx.Node, known: set[Any]) -> _Rule | None:
    """Return how what an operator writes into its first input is put beside it, where nothing else reads that input."""
    target: Any = node.target
    name = target._schema.name.removeprefix("aten::").removesuffix("_")
    plain = getattr(getattr(_ATEN, name, None), target._overloadname, None)
    if plain is None or plain not in known or plain._schema.is_mutable:
        return None
    if len(node.args[0].users) > 1:  # type: ignore[union-attr]
        return None
    return lambda node: _replace(node, plain, node.args)


def _replace(node: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
    node.target, node.args = target, args
    node._rename(target._schema.name.removeprefix("aten::"))


def _batch_norm(node: fx.Node) -> None:
    (*tensors, _, momentum, eps, _), value = node.args, node.meta["val"]
    with node.graph.inserting_after(node):  # all three have names, as torch would give them
        first, *others = (node.graph.call_function(operator.getitem, (node, index)) for index in range(3))
    for other in others:
        node.graph.erase_node(other)
    node.replace_all_uses_with(first, delete_user_cb=lambda user: user is not first)
    first.meta = dict(node.meta)
    node.meta["val"] = (value, value.new_empty(0), value.new_empty(0))
    _replace(node, _BATCH_NORM, (*tensors, momentum, eps))


def _mean(node: fx.Node) -> None:
    _replace(node, _ATEN.mean.dim, (node.args[0], [-1, -2], True))


def _view(node: fx.Node) -> None:
    _replace(node, _ATEN.view.default, (node.args[0], list(node.meta["val"].shape)))


def _copy(node: fx.Node) -> None:
    _replace(node, _ATEN.clone.default, (node.args[0],))
