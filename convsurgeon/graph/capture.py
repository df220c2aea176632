"""Model -> graph and sites: every conv with its names, the shapes of its calls, its cost, and what stands in its way.

The graph (see `trace`) is run once, on fake tensors where the model allows it, on the example itself where it looks at
values. Global module hooks see every conv that runs, also inside opaque regions and in modules kept in plain lists; a
function mode sees convs that are called as functions. Nothing of this stays on the model.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from convsurgeon.base.errors import CaptureError, describe
from convsurgeon.base.normal import in_normal_mode
from convsurgeon.forms.geometry import Geometry
from convsurgeon.graph.cost import Cost, MacCounter, count_weights, live_bytes
from convsurgeon.graph.example import Example
from convsurgeon.graph.functional import FUNCTIONS, functional_geometry
from convsurgeon.graph.model_files import Model, open_model
from convsurgeon.graph.obstacles import check_example, check_model, holders_of, module_obstacle, reading_obstacle
from convsurgeon.graph.site import Call, Site
from convsurgeon.graph.state import outside_inference, undisturbed
from convsurgeon.graph.trace import readers_of_input, trace, untraced
from convsurgeon.onnxnet.modules import Subgraph

_CONVS = nn.modules.conv._ConvNd


@dataclass(frozen=True)
class Capture:
    """What is known of a model after one look at it. `opaque` maps untraced modules to the reason."""

    model: nn.Module
    example: Example
    graph: fx.GraphModule
    sites: tuple[Site, ...]
    opaque: Mapping[str, str]
    cost: Cost


@in_normal_mode
def capture(model: Model, example: object = None) -> Capture:
    """Find and measure every conv of a model, as it runs in eval mode.

    Args:
        model: any module that runs on the example; left as it was, to the bit. Or the path of an ONNX file.
        example: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`; not needed for a file
            whose inputs have fixed sizes.

    Raises:
        CaptureError: the model is of a kind that has no layers to rewrite, or does not run on the example.
        LoadError: the file is no ONNX file, or its convs are quantised.
    """
    model, example = open_model(model, example)
    check_model(model)
    model = outside_inference(model)
    inputs = Example.of(example)
    check_example(inputs)
    inputs = inputs.map(_compact)
    with undisturbed(model):
        graph, opaque = trace(model, inputs)
        try:
            watch, peak = _watch(model, graph, inputs)
        except CaptureError as error:
            if "" in opaque:
                raise
            reason = f"its trace does not run ({error})"  # such as what an except clause hid
            graph, opaque = untraced(model, inputs, reason)
            watch, peak = _watch(model, graph, inputs)
    sites = _module_sites(model, watch) + list(watch.functional.values()) + _hidden_sites(model)
    readers = _readers(model, graph, watch)
    sites = [
        replace(site, share=site.macs / watch.macs if watch.macs else 0.0, reads_input=site.name in readers)
        for site in sites
    ]
    params, weight_bytes = count_weights(model)
    cost = Cost(params, watch.macs, weight_bytes, peak)
    return Capture(model, inputs, graph, tuple(sites), opaque, cost)


def _readers(model: nn.Module, graph: fx.GraphModule, watch: _Watch) -> set[str]:
    """Names of the convs that read the input."""
    by_id = {id(module): module for module in model.modules()}
    run = [by_id[key] for key in watch.calls if key in by_id]
    reading = readers_of_input(graph, run, FUNCTIONS)
    return {name for name, module in model.named_modules() if id(module) in reading}


def _compact(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor that is a slice of a larger one, whose memory would count as the model's."""
    return tensor if tensor.is_meta or tensor.untyped_storage().nbytes() <= tensor.nbytes else tensor.detach().clone()


def _watch(model: nn.Module, graph: fx.GraphModule, example: Example) -> tuple[_Watch, int]:
    """Run the graph on fake tensors, or on the example if the model looks at values."""
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if not on_meta:
        try:
            with undisturbed(model):  # or a cache would go on with a fake tensor
                return _run(model, graph, example.tensors(), FakeTensorMode(allow_non_fake_inputs=True))
        except Exception:  # whatever operator has no fake version, or asks for a value
            pass
    try:
        inputs = [tensor.to("meta") if on_meta else tensor.clone() for tensor in example.tensors()]
        with undisturbed(model):
            return _run(model, graph, inputs, None)
    except Exception as error:
        deep = isinstance(error, RecursionError)
        remedy = "raise sys.setrecursionlimit" if deep else "pass an example that model(...) accepts, batch first"
        raise CaptureError(
            f"example: {type(model).__name__} does not run on an input of shape {example}: {describe(error)}; {remedy}"
        ) from error


def _run(
    model: nn.Module, graph: fx.GraphModule, tensors: list[Tensor], fake: FakeTensorMode | None
) -> tuple[_Watch, int]:
    watch = _Watch(model)
    with ExitStack() as stack:
        if fake is not None:
            stack.enter_context(fake)
            tensors = [fake.from_tensor(tensor, static_shapes=True) for tensor in tensors]
        counter = stack.enter_context(MacCounter())
        stack.enter_context(watch.following(counter))
        interpreter = _PeakInterpreter(graph, watch)
        interpreter.run(*tensors)
    watch.macs = counter.macs
    return watch, interpreter.peak


class _PeakInterpreter(fx.Interpreter):
    """Tells the watch which module a node belongs to, and keeps the peak of the bytes that are alive.

    A value is dropped after its last use; a node's inputs are alive just after it.
    """

    def __init__(self, graph: fx.GraphModule, watch: _Watch) -> None:
        super().__init__(graph)
        self._watch = watch
        self.peak = 0

    def run_node(self, n: fx.Node) -> Any:
        self._watch.scope = next(reversed(n.meta.get("nn_module_stack") or {}), "")
        result = super().run_node(n)
        if n.op != "output":
            alive = [value for node, value in self.env.items() if node.op != "get_attr"]
            self.peak = max(self.peak, live_bytes([*alive, result]))
        return result


class _Watch(TorchFunctionMode):
    """Follows one run of a model: what every conv sees, and who else reads its weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.macs = 0
        self.scope = ""
        self.calls: dict[int, list[Call]] = {}
        self.conv_macs: Counter[int] = Counter()
        self.functional: dict[str, Site] = {}
        self.unregistered: dict[int, tuple[_CONVS, str]] = {}
        self.readers: dict[str, str] = {}
        self.transformed: set[int] = set()
        self._thread = threading.get_ident()
        self._running: list[nn.Module] = []
        self._starts: list[int] = []
        self._names = {id(tensor): name for name, tensor in model.named_parameters()}
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._owners = {
            id(parameter): module
            for module in model.modules()
            if isinstance(module, _CONVS)
            for parameter in module.parameters(recurse=False)
        }

    @contextmanager
    def following(self, counter: MacCounter) -> Iterator[None]:
        self._counter = counter
        before = hooks.register_module_forward_pre_hook(self._enter)
        after = hooks.register_module_forward_hook(self._leave, with_kwargs=True)
        try:
            with self:
                yield
        finally:
            before.remove()
            after.remove()
            hooks._global_forward_hooks_with_kwargs.pop(after.id, None)  # torch leaves it

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != self._thread:
            return
        self._running.append(module)
        self._starts.append(self._counter.macs)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        while self._running.pop() is not module:  # a module whose forward raised and was caught
            self._starts.pop()
        start = self._starts.pop()
        if isinstance(module, Subgraph):
            self._counter.macs += module.macs
        if isinstance(module, _CONVS) and isinstance(output, Tensor):
            value = args[0] if args else kwargs["input"]
            if id(module) not in self._paths:
                self.unregistered.setdefault(id(module), (module, self._here()))
            self.calls.setdefault(id(module), []).append(Call(tuple(value.shape), tuple(output.shape)))
            self.conv_macs[id(module)] += self._counter.macs - start
            if is_functorch_wrapped_tensor(output):
                self.transformed.add(id(module))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inside = next((module for module in reversed(self._running) if isinstance(module, _CONVS)), None)
        for value in (*args, *kwargs.values()):
            owner = self._owners.get(id(value))
            if owner is not None and owner is not inside:
                self.readers.setdefault(self._names[id(value)], self._here())
        if func not in FUNCTIONS or inside is not None:
            return func(*args, **kwargs)
        start = self._counter.macs
        out = func(*args, **kwargs)
        self._note_functional(FUNCTIONS[func], args, kwargs, out, self._counter.macs - start)
        return out

    def _here(self) -> str:
        """Return the module that is running, in words."""
        path = self._paths.get(id(self._running[-1]), "") if self._running else self.scope
        return path or "the model's own forward"

    def _note_functional(
        self, dimensions: int, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor, macs: int
    ) -> None:
        value = args[0] if args else kwargs["input"]
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        name = self._names.get(id(weight)) or f"{self._here()}:{'F.conv' if dimensions > 0 else 'F.conv_transpose'}"
        call = Call(tuple(value.shape), tuple(out.shape))
        known = self.functional.get(name)
        if known is None:
            geometry = functional_geometry(dimensions, weight, args, kwargs)
            kind = f"F.conv{'_transpose' if dimensions < 0 else ''}{abs(dimensions)}d"
            why = f"called as {kind} in {self._here()}; make it an nn.Conv2d module to have it rewritten"
            self.functional[name] = Site(name, (), kind, geometry, (call,), geometry.params, macs, 0.0, why)
        else:
            self.functional[name] = replace(known, calls=(*known.calls, call), macs=known.macs + macs)


def _module_sites(model: nn.Module, watch: _Watch) -> list[Site]:
    """One site per conv module, in the order of the model; then those that run without being registered."""
    names: dict[int, list[str]] = {}
    convs: dict[int, _CONVS] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _CONVS):
            names.setdefault(id(module), []).append(name)
            convs[id(module)] = module
    holders = holders_of(model)
    sites = [_site(conv, names[key], watch, holders) for key, conv in convs.items()]
    for index, (conv, where) in enumerate(watch.unregistered.values()):
        why = f"an unregistered module that runs in {where}; put it into an nn.ModuleList"
        sites.append(replace(_site(conv, [f"{where}:unregistered.{index}"], watch, holders), obstacle=why))
    return sites


def _hidden_sites(model: nn.Module) -> list[Site]:
    """Convs that another runtime computes, under names that no module has."""
    taken = {name for name, _ in model.named_modules()}
    found = []
    for path, module in model.named_modules():
        for conv in module.convs if isinstance(module, Subgraph) else ():
            name = conv.name if conv.name not in taken else f"{path}.{conv.name}"
            taken.add(name)
            calls = tuple(Call(before, after) for before, after in conv.shapes)
            found.append(Site(name, (), conv.kind, conv.geometry, calls, conv.params, conv.macs, 0.0, conv.reason))
    return found


def _site(conv: _CONVS, names: list[str], watch: _Watch, holders: Mapping[int, list[nn.Module]]) -> Site:
    calls = tuple(watch.calls.get(id(conv), ()))
    obstacle = module_obstacle(conv, holders) or reading_obstacle(conv, names[0], watch.readers)
    if not obstacle and not calls:
        obstacle = "the example never reaches it in eval mode"
    if not obstacle and id(conv) in watch.transformed:
        obstacle = "it runs inside a transform such as torch.func.vmap; call it on whole batches"
    return Site(
        names[0],
        tuple(names[1:]),
        type(conv).__name__,
        Geometry.of(conv),
        calls,
        sum(parameter.numel() for parameter in conv.parameters()),
        watch.conv_macs[id(conv)],
        0.0,
        obstacle,
    )
