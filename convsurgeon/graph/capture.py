"""Model -> graph and sites: every conv with its names, the shapes of its calls, its cost, and what stands in its way.

The graph (see `trace`) is run once, on fake tensors where the model allows it, on the example itself where it looks at
values.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from convsurgeon.base.errors import CaptureError, describe
from convsurgeon.forms.geometry import Geometry
from convsurgeon.graph.cost import Cost, MacCounter, PeakInterpreter, parameter_count, weight_bytes
from convsurgeon.graph.example import Example
from convsurgeon.graph.model_files import Model, open_model
from convsurgeon.graph.obstacles import check_model, holders_of, module_obstacle, reading_obstacle
from convsurgeon.graph.recorder import CONV_FUNCTIONS, Recorder
from convsurgeon.graph.site import Call, Site
from convsurgeon.graph.state import undisturbed
from convsurgeon.graph.trace import Traced, readers_of_input, trace, untraced
from convsurgeon.onnxnet.modules import HiddenConv, Subgraph

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


@dataclass(frozen=True)
class _Run:
    """One run of a model, recorded."""

    record: Recorder
    macs: int
    peak_activation_bytes: int


def capture(model: Model, example: object = None) -> Capture:
    """Find and measure every conv of a model, as it runs in eval mode.

    Args:
        model: any module that runs on the example; left as it was, to the bit. Or the path of an ONNX file.
        example: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`; not needed for a file
            whose inputs have fixed sizes.

    Raises:
        CaptureError: the model is of a kind that has no layers to rewrite, or does not run on the example.
        LoadError: the file is not an ONNX file, or its convs are quantised.
    """
    model, example = open_model(model, example)
    check_model(model)
    inputs = Example.of(example).map(_without_spare_memory)
    with undisturbed(model):
        traced = trace(model, inputs)
        try:
            run = _run(model, traced, inputs)
        except CaptureError as error:
            if "" in traced.opaque:
                raise
            traced = untraced(model, inputs, f"its trace does not run ({error})")  # such as what an except clause hid
            run = _run(model, traced, inputs)
    sites = [*_module_sites(model, run.record), *run.record.functional.values(), *_hidden_sites(model)]
    readers = _names_of_readers(model, traced, run.record)
    shared = [
        replace(site, share=site.macs / run.macs if run.macs else 0.0, reads_input=site.name in readers)
        for site in sites
    ]
    cost = Cost(parameter_count(model), run.macs, weight_bytes(model), run.peak_activation_bytes)
    return Capture(model, inputs, traced.graph, tuple(shared), traced.opaque, cost)


def _without_spare_memory(tensor: Tensor) -> Tensor:
    """Return a copy of a slice of a larger tensor, whose memory would count as the model's; others as they are."""
    return tensor if tensor.is_meta or tensor.untyped_storage().nbytes() <= tensor.nbytes else tensor.detach().clone()


def _run(model: nn.Module, traced: Traced, example: Example) -> _Run:
    """Run the graph on fake tensors, or on the example if the model looks at values."""
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if not on_meta:
        try:
            with undisturbed(model):  # or a cache would go on with a fake tensor
                return _run_on(model, traced, example.tensors(), FakeTensorMode(allow_non_fake_inputs=True))
        except Exception as error:  # whatever operator has no fake version, or asks for a value
            logging.getLogger(__name__).debug("does not run on fake tensors: %s", error)
    try:
        inputs = [tensor.to("meta") if on_meta else tensor.clone() for tensor in example.tensors()]
        with undisturbed(model):
            return _run_on(model, traced, inputs, None)
    except Exception as error:
        raise CaptureError(
            f"example: {type(model).__name__} does not run on an input of shape {example}: "
            f"{describe(error)}; pass an example that model(...) accepts"
        ) from error


def _run_on(model: nn.Module, traced: Traced, tensors: list[Tensor], fake: FakeTensorMode | None) -> _Run:
    with ExitStack() as stack:
        if fake is not None:
            stack.enter_context(fake)
            tensors = [fake.from_tensor(tensor, static_shapes=True) for tensor in tensors]
        counter = stack.enter_context(MacCounter())
        record = Recorder(model, counter)
        stack.enter_context(record.recording())
        interpreter = _ScopeInterpreter(traced.graph, record)
        interpreter.run(*tensors)
    return _Run(record, counter.macs, interpreter.peak_activation_bytes)


class _ScopeInterpreter(PeakInterpreter):
    """Tells the recorder which module a traced-through function belongs to."""

    def __init__(self, graph: fx.GraphModule, record: Recorder) -> None:
        super().__init__(graph)
        self._record = record

    def run_node(self, n: fx.Node) -> Any:
        scopes = n.meta.get("nn_module_stack") or {}
        self._record.scope = next(reversed(scopes), "")
        return super().run_node(n)


def _names_of_readers(model: nn.Module, traced: Traced, record: Recorder) -> set[str]:
    """Return the names of the convs that read the input."""
    by_id = {id(module): module for module in model.modules()}
    run = [by_id[key] for key in record.calls if key in by_id]
    reading = readers_of_input(traced.graph, run, CONV_FUNCTIONS)
    return {name for name, module in model.named_modules() if id(module) in reading}


def _module_sites(model: nn.Module, record: Recorder) -> list[Site]:
    """Return one site per conv module, in the order of the model; then those that run without being registered."""
    names: dict[int, list[str]] = {}
    convs: dict[int, _CONVS] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _CONVS):
            names.setdefault(id(module), []).append(name)
            convs[id(module)] = module
    holders = holders_of(model)
    sites = [_module_site(conv, names[key], record, holders) for key, conv in convs.items()]
    for index, (conv, where) in enumerate(record.unregistered.values()):
        why = f"an unregistered module that runs in {where}; put it into an nn.ModuleList"
        site = _module_site(conv, [f"{where}:unregistered.{index}"], record, holders)
        sites.append(replace(site, obstacle=why))
    return sites


def _module_site(conv: _CONVS, names: list[str], record: Recorder, holders: Mapping[int, list[nn.Module]]) -> Site:
    calls = tuple(record.calls.get(id(conv), ()))
    obstacle = module_obstacle(conv, holders) or reading_obstacle(conv, names[0], record.readers)
    if not obstacle and not calls:
        obstacle = "the example never reaches it in eval mode"
    params = sum(parameter.numel() for parameter in conv.parameters())
    macs = record.conv_macs[id(conv)]
    return Site(names[0], tuple(names[1:]), type(conv).__name__, Geometry.of(conv), calls, params, macs, 0.0, obstacle)


def _hidden_sites(model: nn.Module) -> list[Site]:
    """Return convs that run in subgraphs, under names that no module has."""
    taken = {name for name, _ in model.named_modules()}
    found = []
    for path, module in model.named_modules():
        for conv in module.convs if isinstance(module, Subgraph) else ():
            name = conv.name if conv.name not in taken else f"{path}.{conv.name}"
            taken.add(name)
            found.append(_hidden_site(name, conv))
    return found


def _hidden_site(name: str, conv: HiddenConv) -> Site:
    calls = tuple(Call(before, after) for before, after in conv.shapes)
    return Site(name, (), conv.kind, conv.geometry, calls, conv.params, conv.macs, 0.0, conv.reason)
