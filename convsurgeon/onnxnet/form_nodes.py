"""What stands in the place of a conv, as nodes to write: read off its module, whatever form built it.

The margin of a conv that pads unequally (`auto_pad`, asymmetric `pads`) is no part of its module. Each stage that has
the window along an axis takes the margin of that axis, as long as nothing before it would have seen the zeros: bare
convs without bias make zeros of zeros. Otherwise the margin becomes a Pad of its own, and where it is that of
`auto_pad` in a file of open sizes, a few nodes before it compute it from the size of what is padded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from onnx import NodeProto, helper
from torch import Tensor, fx, nn

from convsurgeon.base.errors import ExportError
from convsurgeon.onnxnet.network import Owner


@dataclass(frozen=True)
class Stage:
    """One node: its name within the conv's, what it reads by key ("" is the conv's own input), weights by part."""

    key: str
    name: str
    operator: str
    inputs: tuple[str, ...]
    weights: tuple[tuple[str, Tensor], ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)


def stages(module: nn.Module, node: NodeProto, owner: Owner, opset: int) -> list[Stage]:
    """The nodes of a module that replaces a conv node, in order.

    Args:
        module: chains of convs, sums, norms and activations.
        node: the conv.
        owner: what is known of it.
        opset: of the file.

    Raises:
        ExportError: the module computes something else, or the operator set has no such node.
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        return [Stage("conv", "", "Conv", ("",), _weights(module), _kept(node))]
    graph = _traced(module, owner)
    margin = _Margin.of(node, owner)
    absorbed = _absorbed(graph, module, margin)
    return _Reader(graph, module, margin, absorbed, opset, owner).read()


def _traced(module: nn.Module, owner: Owner) -> fx.Graph:
    try:
        return fx.Tracer().trace(module)
    except Exception as error:  # whatever a form's forward raises
        raise ExportError(f"{owner.outputs[0]}: its form cannot be written as ONNX nodes ({error})") from error


def _kept(node: NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _weights(module: nn.Module) -> tuple[tuple[str, Tensor], ...]:
    return tuple((name, tensor) for name, tensor in module.named_parameters(recurse=False))


@dataclass(frozen=True)
class _Margin:
    """A conv's own margin where its module has none: `auto_pad`, or all beginnings and then all ends.

    Args:
        word: `auto_pad`.
        pads: on the example.
        window: as an `Owner` has it: of a margin that is not always the same.
    """

    word: str
    pads: tuple[int, ...]
    window: tuple[tuple[int, int], ...]

    @staticmethod
    def of(node: NodeProto, owner: Owner) -> _Margin:
        pads = owner.margins[owner.outputs.index(node.output[0])] if owner.margins else ()
        return _Margin(str(_kept(node).get("auto_pad", b"").decode()), pads, owner.window)

    @property
    def axes(self) -> frozenset[int]:
        """Along which it is, or may be."""
        half = len(self.pads) // 2
        if self.window:
            return frozenset(axis for axis, (window, _) in enumerate(self.window) if window > 1)
        return frozenset(axis for axis in range(half) if self.pads[axis] or self.pads[axis + half])

    def along(self, axes: frozenset[int]) -> dict[str, Any]:
        """Attributes of a conv that takes the margin of some axes."""
        if self.word.startswith("SAME"):
            return {"auto_pad": self.word}
        half = len(self.pads) // 2
        return {"pads": [pad if place % half in axes else 0 for place, pad in enumerate(self.pads)]}


def _absorbed(graph: fx.Graph, root: nn.Module, margin: _Margin) -> dict[fx.Node, frozenset[int]] | None:
    """Which conv takes the margin of which axes; None where they cannot."""
    waiting: dict[fx.Node, frozenset[int]] = {}
    bare: dict[fx.Node, bool] = {}
    taken: dict[fx.Node, frozenset[int]] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            waiting[node], bare[node] = margin.axes, True
            continue
        sources = node.all_input_nodes
        conv = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(conv, nn.Conv2d):
            (source,) = sources
            takes = frozenset(axis for axis in waiting[source] if conv.kernel_size[axis] > 1)
            left = waiting[source] - takes
            if (takes and not bare[source]) or any(conv.stride[axis] > 1 for axis in left):
                return None
            taken[node], waiting[node], bare[node] = takes, left, bare[source] and conv.bias is None
        elif any(waiting[source] for source in sources):
            return None
        else:
            waiting[node], bare[node] = frozenset(), False
    return taken


class _Reader:
    """Reads the nodes off a traced module."""

    def __init__(
        self,
        graph: fx.Graph,
        root: nn.Module,
        margin: _Margin,
        absorbed: dict[fx.Node, frozenset[int]] | None,
        opset: int,
        owner: Owner,
    ) -> None:
        self.graph, self.root, self.margin, self.absorbed = graph, root, margin, absorbed
        self.opset, self.owner = opset, owner
        self.keys: dict[fx.Node, str] = {}
        self.found: list[Stage] = []

    def read(self) -> list[Stage]:
        """All nodes."""
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.keys[node] = "" if self.absorbed is not None else self._pad()
            elif node.op == "call_module":
                self._module(node, self.root.get_submodule(str(node.target)))
            elif node.op == "call_function" and _adds(node):
                self._put(node, "Add", tuple(self.keys[one] for one in node.args if isinstance(one, fx.Node)))
            elif node.op != "output":
                raise self._unknown(str(node.target))
        return self.found

    def _unknown(self, what: str) -> ExportError:
        return ExportError(
            f"{self.owner.outputs[0]}: opset {self.opset} has no node for the {what} of its form; "
            "choose a form of plain convs"
        )

    def _put(self, node: fx.Node, operator: str, inputs: tuple[str, ...], **more: Any) -> None:
        name = str(node.target) if node.op == "call_module" else str(node.name)
        self.keys[node] = str(node.name)
        self.found.append(Stage(str(node.name), name, operator, inputs, **more))

    def _pad(self) -> str:
        """A Pad in front of everything."""
        pads = self.margin.pads
        half = len(pads) // 2
        whole = [0, 0, *pads[:half], 0, 0, *pads[half:]]
        if self.margin.window:
            self._growing()
        elif self.opset < 11:
            self.found.append(Stage("margin", "margin", "Pad", ("",), (), {"pads": whole}))
        else:
            self.found.append(Stage("margin", "margin", "Pad", ("",), (("pads", torch.tensor(whole)),)))
        return "margin"

    def _growing(self) -> None:
        """A Pad by `max(0, kernel - stride + (-size mod stride))`, half of it at either end, the rest where it goes.

        Batch and channels go along with kernel and stride 1, so that they get no margin.
        """
        if self.opset < 12:
            raise self._unknown("margin of a size that is not known before")
        steps = torch.tensor([1, 1, *(step for _, step in self.margin.window)])
        wider = torch.tensor([0, 0, *(kernel - step for kernel, step in self.margin.window)])
        for key, operator, inputs, *weights in (
            ("size", "Shape", ("",)),
            ("less", "Neg", ("size",)),
            ("rest", "Mod", ("less",), ("steps", steps)),
            ("lacking", "Add", ("rest",), ("wider", wider)),
            ("all", "Max", ("lacking",), ("none", torch.tensor([0]))),
            ("small", "Div", ("all",), ("two", torch.tensor([2]))),
            ("large", "Sub", ("all", "small")),
        ):
            ends = tuple(f"margin {one}" if one else "" for one in inputs)
            self.found.append(Stage(f"margin {key}", f"margin.{key}", operator, ends, tuple(weights)))
        order = ("large", "small") if self.margin.word == "SAME_LOWER" else ("small", "large")
        ends = tuple(f"margin {one}" for one in order)
        self.found.append(Stage("margin both", "margin.both", "Concat", ends, (), {"axis": 0}))
        self.found.append(Stage("margin", "margin", "Pad", ("", "margin both")))

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        source = tuple(self.keys[one] for one in node.all_input_nodes)
        if isinstance(module, nn.Conv2d):
            self._put(node, "Conv", source, weights=_weights(module), attributes=self._attributes(node, module))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            stored = (("running_mean", module.running_mean), ("running_var", module.running_var))
            more = {"weights": (*_weights(module), *stored), "attributes": {"epsilon": module.eps}}
            self._put(node, "BatchNormalization", source, **more)
        elif type(module) in _ACTIVATIONS:
            self._activation(node, module, source)
        else:
            raise self._unknown(type(module).__name__)

    def _attributes(self, node: fx.Node, conv: nn.Conv2d) -> dict[str, Any]:
        made: dict[str, Any] = {
            "dilations": list(conv.dilation),
            "group": conv.groups,
            "kernel_shape": list(conv.kernel_size),
            "strides": list(conv.stride),
        }
        takes = frozenset() if self.absorbed is None else self.absorbed[node]
        padding = conv.padding
        assert not isinstance(padding, str)
        return made | (self.margin.along(takes) if takes else {"pads": [*padding, *padding]})

    def _activation(self, node: fx.Node, module: nn.Module, source: tuple[str, ...]) -> None:
        least, write = _ACTIVATIONS[type(module)]
        if self.opset < least:
            raise self._unknown(type(module).__name__)
        write(self, node, source)

    def relu6(self, node: fx.Node, source: tuple[str, ...]) -> None:
        """As two nodes that every operator set has."""
        self._put(node, "Clip", source, weights=(("low", torch.tensor(0.0)), ("high", torch.tensor(6.0))))

    def silu(self, node: fx.Node, source: tuple[str, ...]) -> None:
        """A product with a gate."""
        self.found.append(Stage(f"{node.name} gate", f"{node.target}.gate", "Sigmoid", source))
        self._put(node, "Mul", (*source, f"{node.name} gate"))


_Write = Callable[[_Reader, fx.Node, tuple[str, ...]], None]


def _plain(operator: str) -> _Write:
    return lambda reader, node, source: reader._put(node, operator, source)


_ACTIVATIONS: dict[type[nn.Module], tuple[int, _Write]] = {
    nn.ReLU: (7, _plain("Relu")),
    nn.ReLU6: (11, _Reader.relu6),
    nn.SiLU: (7, _Reader.silu),
    nn.Hardswish: (14, _plain("HardSwish")),
    nn.GELU: (20, _plain("Gelu")),
}


def _adds(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") in ("add", "iadd") and len(node.args) == 2
