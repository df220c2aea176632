"""Two networks run side by side over all calibration batches at once, from one node of interest to the next.

Both follow the graph of the original; the converted one finds other modules under the same names. Between two such
nodes batch follows batch, and a value is dropped after its last use. So what is held for all images is one cut through
the network, at such a node only: it may be spilled to disk.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Collection, Iterator, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from convsurgeon.base.files import scratch, write_values
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.trace import UntracedRoot, over

_SMALL_BYTES = 1 << 17
"""What stays in memory, where the allocator puts it into a hole that a large value has left: then that does not fit."""


class Runner(fx.Interpreter):
    """One of the two networks: the values of every live node, one per batch.

    Args:
        root: where the graph's modules and tensors are.
        traced: what the graph was traced of, with the tensors that a forward made while it was.
        batches: the inputs.
        spill: whether large values go to disk.
    """

    def __init__(self, root: nn.Module, traced: fx.GraphModule, batches: Sequence[Example], spill: bool) -> None:
        super().__init__(over(graph_targets(root, traced), traced.graph))
        self._inputs = [iter(batch.tensors()) for batch in batches]
        self._spill = spill
        self._dropped = _last_uses(traced.graph)
        self.environments: list[dict[fx.Node, Any]] = [{} for _ in batches]

    def run_through(self, nodes: Sequence[fx.Node]) -> None:
        """Compute a stretch of nodes for every batch, and drop what is not needed after each of them but the last."""
        for environment, inputs in zip(self.environments, self._inputs, strict=True):
            self.env = environment
            for node in nodes:
                if node.op == "placeholder":
                    environment[node] = next(inputs).detach().clone()  # a forward may change its input
                else:
                    environment[node] = self.run_node(node)
                if node is not nodes[-1]:
                    self._drop(environment, node)
            if self._spill:
                for node in nodes:
                    if node in environment:
                        environment[node] = on_disk(environment[node])
                page_out(list(environment.values()))

    def drop(self, node: fx.Node) -> None:
        """Drop what is not needed after a node."""
        for environment in self.environments:
            self._drop(environment, node)

    def _drop(self, environment: dict[fx.Node, Any], node: fx.Node) -> None:
        for gone in self._dropped.get(node, []):
            environment.pop(gone, None)

    def watched(self, node: fx.Node, modules: Sequence[nn.Module], index: int) -> list[tuple[nn.Module, Any]]:
        """Run a node for one batch and return every call of `modules` as (input, output); the value is not kept."""
        found: list[tuple[nn.Module, Any]] = []

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found.append((module, (args[0].clone(), output.clone())))

        handles = [module.register_forward_hook(hook) for module in modules]
        try:
            self.env = pytree.tree_map_only(Tensor, Tensor.clone, dict(self.environments[index]))
            self.run_node(node)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def of(self, node: fx.Node) -> list[Any]:
        """Return a live node's value for every batch."""
        return [environment[node] for environment in self.environments]


def converted_root(seen: Capture, converted: nn.Module) -> nn.Module:
    """Return the converted model, in a wrapper where the original could not be traced at all."""
    return UntracedRoot(converted) if "" in seen.opaque else converted


def graph_targets(root: nn.Module, traced: fx.GraphModule) -> dict[str, Any]:
    """Return what the graph refers to, from `root` where it has it, else from the trace."""
    names = {str(node.target) for node in traced.graph.nodes if node.op in ("call_module", "get_attr")}
    found = {}
    for name in names:
        try:
            found[name] = attrgetter(name)(root)
        except AttributeError:
            found[name] = attrgetter(name)(traced)
    return found


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Return for every node the nodes whose values are not needed after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last[node] = node
        for source in node.all_input_nodes:
            last[source] = node
    dropped: dict[fx.Node, list[fx.Node]] = {}
    for node, user in last.items():
        dropped.setdefault(user, []).append(node)
    return dropped


def walk(graph: fx.Graph, runners: Sequence[Runner], stops: Collection[fx.Node]) -> Iterator[fx.Node]:
    """Yield every node of interest after all runners but the last have computed it, and before the last one does.

    Changes that are made to the last runner's modules in between count already. What follows the last node is not run.
    """
    *leaders, follower = runners
    ahead: list[fx.Node] = []
    behind: list[fx.Node] = []
    for node in graph.nodes:
        if node not in stops:
            ahead.append(node)
            continue
        for leader in leaders:
            leader.run_through([*ahead, node])
        follower.run_through([*behind, *ahead])
        for done in [*behind, *ahead][-1:]:
            follower.drop(done)
        yield node
        for leader in leaders:
            leader.drop(node)
        ahead, behind = [], [node]


def on_disk(value: Any) -> Any:
    """Return the same values, all but small tensors in unnamed files that are read where they are used."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.nbytes < _SMALL_BYTES or leaf.device.type != "cpu":
            return leaf
        strides = torch.empty_like(leaf, device="meta").stride()
        dense = leaf.detach() if leaf.stride() == strides else torch.empty_like(leaf).copy_(leaf)
        values = dense.as_strided((leaf.numel(),), (1,))
        with scratch() as folder:  # the name goes, the file stays as long as it is mapped, and is not open
            write_values(folder / "values", values.view(torch.uint8).numpy().data)  # faster than to a map
            whole = torch.from_file(str(folder / "values"), shared=True, size=leaf.numel(), dtype=leaf.dtype)
        mapped = whole.as_strided(leaf.shape, strides)
        mapped.is_mapped = True  # type: ignore[attr-defined]
        return mapped

    moved = pytree.tree_map(move, value)
    page_out(moved)
    return moved


def page_out(values: Any) -> None:
    """Give back the memory of values on disk: pages that were written or read stay resident otherwise."""
    for leaf in pytree.tree_leaves(values):
        if getattr(leaf, "is_mapped", False) and hasattr(mmap, "MADV_DONTNEED"):
            place, size = ctypes.c_void_p(leaf.data_ptr()), ctypes.c_size_t(leaf.nbytes)
            ctypes.CDLL(None).madvise(place, size, mmap.MADV_DONTNEED)
