"""Symbolic tracing that never gives up: what cannot be traced becomes one opaque node.

`torch.fx` fails on control flow that depends on data, on modules kept in plain Python lists, on code that iterates over
tensors. The innermost module whose forward fails is then made a leaf, with its whole class, because its siblings would
fail the same way, and the trace is tried again. If the model's own forward fails, the graph is one call of the model.

A module that the model does not know, such as a pooling that a forward makes or a layer in a plain list, is a leaf
under a name of its own, unless it holds modules that the model does know, or values of the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from convsurgeon.base.errors import CaptureError, describe
from convsurgeon.base.tracer import ThreadTracer
from convsurgeon.graph.example import Example
from convsurgeon.graph.state import undisturbed
from convsurgeon.onnxnet.modules import Leaf

_CONVS = nn.modules.conv._ConvNd
UNTRACED = "model"
"""Target of the single call in the graph of a model that cannot be traced at all."""


Traced = tuple[fx.GraphModule, Mapping[str, str]]
"""A graph over the model's own modules, whose placeholders are the example's tensors, in pytree order; and the modules
that were not traced through, with the reason; `""` is the model itself."""


def trace(model: nn.Module, example: Example) -> Traced:
    """Trace `model(*example.args, **example.kwargs)` in the mode the model is in."""
    paths = frozenset[str]()
    kinds = frozenset[type[nn.Module]]()
    opaque: dict[str, str] = {}
    while True:
        tracer = _Tracer(example, paths, kinds)
        try:
            with undisturbed(model):  # a trace that fails leaves its proxies on the model, in caches that it fills
                graph = over(model, tracer.trace(model))  # writes Python, which not every name survives
        except _UntraceableError as failure:
            opaque[failure.path] = failure.reason
            paths |= {failure.path}
            if not type(failure.module).__module__.startswith("torch.nn"):
                kinds |= {type(failure.module)}
        except Exception as error:  # whatever user code raises while it is traced
            return untraced(model, example, describe(error))
        else:
            siblings = {type(model.get_submodule(path)): reason for path, reason in opaque.items()}
            kept = {path: opaque.get(path) or siblings[type(model.get_submodule(path))] for path in tracer.leaves}
            return graph, kept


class _UntraceableError(Exception):
    """A submodule whose forward cannot be traced."""

    def __init__(self, path: str, module: nn.Module, reason: str) -> None:
        super().__init__(path)
        self.path, self.module, self.reason = path, module, reason


class _Tracer(ThreadTracer):
    """Takes its placeholders from the example; keeps convs of every kind, and what failed before, as leaves."""

    def __init__(self, example: Example, paths: frozenset[str], kinds: frozenset[type[nn.Module]]) -> None:
        super().__init__()
        self._example, self._paths, self._kinds = example, paths, kinds
        self.leaves: set[str] = set()
        self._made: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """One placeholder per tensor; everything else in the example is a constant of the trace."""
        leaves, spec = pytree.tree_flatten((self._example.args, self._example.kwargs))
        proxies = [
            self.create_proxy("placeholder", f"input_{index}", (), {}) if isinstance(leaf, Tensor) else leaf
            for index, leaf in enumerate(leaves)
        ]
        args, kwargs = pytree.tree_unflatten(proxies, spec)
        return lambda root: root.forward(*args, **kwargs), [self.root]  # also where forward is set on the instance

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Convs are never traced through: a subclass's own forward is its own business."""
        if module_qualified_name in self._paths or type(m) in self._kinds:
            self.leaves.add(module_qualified_name)
            return True
        if isinstance(m, _CONVS | Leaf):
            return True
        if not super().is_leaf_module(m, module_qualified_name):
            return False
        return not any(isinstance(inner, _CONVS) for inner in m.modules())  # nn.DataParallel is torch's, but holds some

    def call_own_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Blames the innermost module that fails; one that is not registered is its caller's fault."""
        if m not in (self.submodule_paths or ()):
            return self._call_unregistered(m, forward, args, kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_own_module(m, forward, args, kwargs)
        try:
            return super().call_own_module(m, forward, args, kwargs)
        except _UntraceableError:
            raise
        except Exception as error:
            raise _UntraceableError(path, m, describe(error)) from error

    def _call_unregistered(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record a call of a module that is not looked into."""
        for one in m.modules():
            own = pytree.tree_leaves(list(vars(one).values()))  # computed by the trace: a window as wide as the input
            if one in (self.submodule_paths or ()) or any(isinstance(leaf, fx.Proxy) for leaf in own):
                return forward(*args, **kwargs)
        name = self._made.get(m) or self.get_fresh_qualname("_unregistered")
        self._made[m] = name
        self.root._modules[name] = m
        return self.create_proxy("call_module", name, args, kwargs)


class UntracedRoot(nn.Module):
    """A root whose one child is the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.add_module(UNTRACED, model)


def untraced(model: nn.Module, example: Example, reason: str) -> Traced:
    """Return a graph that only calls the model, where tracing it fails or gives one that does not run."""
    leaves, spec = pytree.tree_flatten((example.args, example.kwargs))
    graph = fx.Graph()
    nodes = [graph.placeholder(f"input_{i}") if isinstance(leaf, Tensor) else leaf for i, leaf in enumerate(leaves)]
    args, kwargs = pytree.tree_unflatten(nodes, spec)
    try:
        graph.output(graph.call_module(UNTRACED, args, kwargs))
    except Exception as error:
        raise CaptureError(f"example: an argument torch.fx cannot hold ({describe(error)}); pass tensors") from error
    return over(UntracedRoot(model), graph), {"": reason}


def over(root: nn.Module | dict[str, Any], graph: fx.Graph) -> fx.GraphModule:
    """Return a graph over a model's modules, or over those of these names."""
    made = fx.GraphModule(root, graph)
    made.graph.owning_module = None  # it would keep the weights for as long as somebody holds the graph
    return made


def readers_of_input(graph: fx.GraphModule, run: Collection[nn.Module], functions: Collection[object]) -> set[int]:
    """Return the ids of the conv modules that read the input: nothing that another conv has made reaches them.

    `run` are the conv modules as they run: where the graph shows no reader, the first stands for it. `functions` are
    convs that are called as functions.
    """
    made: dict[fx.Node, bool] = {}  # whether a conv had a part in a node's value
    found: set[int] = set()
    for node in graph.graph.nodes:
        late = any(made[other] for other in node.all_input_nodes)
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _CONVS) and not late:
            found.add(id(module))
        inside = module is not None and any(isinstance(part, _CONVS) for part in module.modules())
        made[node] = late or inside or (node.op == "call_function" and node.target in functions)
    return found or {id(module) for module in list(run)[:1]}
