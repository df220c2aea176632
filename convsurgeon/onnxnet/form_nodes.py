"""Write a module that stands in the place of a conv as ONNX nodes, whatever form built it.

Padding that the conv of a file has and its module has not (`auto_pad`, other amounts at either end) is given to those
convs of the module that have a window along its axis, where nothing before them would have seen the zeros: convs
without bias make zeros of zeros. Otherwise a Pad node goes before everything; where its amounts follow from a size that
is not known, a few nodes compute them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from onnx import GraphProto, NodeProto, helper
from torch import Tensor, fx, nn

from convsurgeon.base.errors import ExportError
from convsurgeon.base.tracer import ThreadTracer
from convsurgeon.forms.as_conv import TransposedAsConv
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.padding import Padding

Put = Callable[[str, Tensor], str]
"""Stores a tensor in the graph under a name; gives the name that it has there. Tensors may be on the meta device."""

_ACTIVATIONS: dict[type[nn.Module], tuple[str, int]] = {
    nn.ReLU: ("Relu", 7),
    nn.Hardswish: ("HardSwish", 14),
    nn.GELU: ("Gelu", 20),
}
"""The operator of a module, and the first operator set that has it."""

_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@dataclass(frozen=True)
class TakenNames:
    """Names of nodes and of values that a graph has; new ones are added as they are made."""

    nodes: set[str]
    values: set[str]

    @staticmethod
    def of(graph: GraphProto) -> TakenNames:
        """Return the names of a graph and of the graphs inside its nodes."""
        inner = list(proto.graphs(graph))
        values = {name for one in inner for node in one.node for name in (*node.input, *node.output)}
        values |= {info.name for one in inner for info in (*one.input, *one.output)}
        values |= {tensor.name for one in inner for tensor in one.initializer}
        return TakenNames({node.name for one in inner for node in one.node}, values)


def form_nodes(
    module: nn.Module,
    conv: NodeProto,
    *,
    prefix: str,
    names: TakenNames,
    put: Put,
    opset: int,
    source: str | None = None,
    padding: Padding | None = None,
    size: Sequence[int] | None = None,
    shuffle: TransposedAsConv | None = None,
) -> list[NodeProto]:
    """Return the nodes that compute a module in the place of a conv node; the last gives its output.

    The module may hold convs, sums, norms and activations, in any order that `torch.fx` can trace. `prefix` is of the
    names of weights, and of the new nodes where the conv has no name. `source` is what the module reads, where that is
    not what the conv reads; `padding` what the conv has and the module has not, and `size` the spatial size of the
    conv's input, where it is always the same. `shuffle` is the module that holds this one, where the node is a
    transposed conv.
    """
    writer = _Writer(module, conv, prefix, names, put, opset)
    if isinstance(module, nn.modules.conv._ConvNd):  # of the same kind, with other weights
        attributes = {item.name: helper.get_attribute_value(item) for item in conv.attribute}
        writer.write_node("", conv.op_type, (conv.input[0], *writer.put_weights("", module)), **attributes)
    else:
        writer.write_module(source or conv.input[0], padding, size)
    if shuffle is not None:
        writer.write_shuffle(shuffle)
    writer.nodes[-1].output[0] = conv.output[0]
    return writer.nodes


class _Writer:
    def __init__(self, root: nn.Module, conv: NodeProto, prefix: str, names: TakenNames, put: Put, opset: int) -> None:
        self.root, self.conv, self.prefix, self.names, self.put, self.opset = root, conv, prefix, names, put, opset
        self.nodes: list[NodeProto] = []
        self.padded: dict[tuple[str, tuple[int, ...]], str] = {}

    def write_module(self, source: str, padding: Padding | None, size: Sequence[int] | None) -> None:
        try:
            graph = ThreadTracer().trace(self.root)
        except Exception as error:  # whatever a form's forward raises
            raise ExportError(f"{self.conv.output[0]}: its form has no ONNX nodes ({error}); choose another") from error
        taken = _convs_that_pad(graph, self.root, padding) if padding else {}
        if padding is not None and taken is None:
            by_size = padding.rule and size is None
            source = self._pad_by_size(source, padding) if by_size else self._pad(source, padding.amounts(size or ()))
        values: dict[fx.Node, str] = {}
        for node in graph.nodes:
            inputs = [values[one] for one in node.all_input_nodes]
            if node.op == "placeholder":
                values[node] = source
            elif node.op == "call_module":
                own = padding.attributes(taken[node]) if padding and taken and taken.get(node) else {}
                values[node] = self._module(str(node.target), inputs[0], own)
            elif getattr(node.target, "__name__", "") in ("add", "iadd") and len(node.args) == 2:
                ends = [values[one] for one in node.args if isinstance(one, fx.Node)]
                values[node] = self.write_node(str(node.name), "Add", ends)
            elif node.op != "output":
                raise self._unknown(str(node.target))

    def _module(self, path: str, source: str, padding: dict[str, Any]) -> str:
        """Write one module; return the name of its output."""
        module = self.root.get_submodule(path)
        if isinstance(module, nn.Conv2d):
            return self._conv(path, module, source, padding)
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            stored = [(f"{path}.running_{name}", getattr(module, f"running_{name}")) for name in ("mean", "var")]
            weights = [*self.put_weights(path, module), *(self._put(name, tensor) for name, tensor in stored)]
            return self.write_node(path, "BatchNormalization", (source, *weights), epsilon=module.eps)
        if isinstance(module, nn.ReLU6) and self.opset >= 11:
            limits = [
                self._put(f"{path}.{name}", torch.tensor(value, dtype=torch.float32, device="cpu"))
                for name, value in (("low", 0.0), ("high", 6.0))
            ]
            return self.write_node(path, "Clip", (source, *limits))
        if isinstance(module, nn.SiLU):
            gate = self.write_node(f"{path}.gate", "Sigmoid", (source,))
            return self.write_node(path, "Mul", (source, gate))
        operator, since = _ACTIVATIONS.get(type(module), ("", 0))
        if not operator or self.opset < since:
            raise self._unknown(type(module).__name__)
        return self.write_node(path, operator, (source,))

    def _conv(self, path: str, conv: nn.Conv2d, source: str, padding: dict[str, Any]) -> str:
        pads = _pads_of(conv)
        if conv.padding_mode != "zeros" and any(pads):
            if (source, pads) not in self.padded:  # one Pad for all convs that pad the same value alike
                self.padded[source, pads] = self._pad(source, pads, _MODES[conv.padding_mode])
            source, pads = self.padded[source, pads], (0,) * len(pads)
        attributes = {
            "dilations": list(conv.dilation),
            "group": conv.groups,
            "kernel_shape": list(conv.kernel_size),
            "strides": list(conv.stride),
        }
        return self.write_node(
            path, "Conv", (source, *self.put_weights(path, conv)), **attributes, **(padding or {"pads": list(pads)})
        )

    def _pad(self, source: str, pads: Sequence[int], mode: str = "constant") -> str:
        half = len(pads) // 2
        whole = [0, 0, *pads[:half], 0, 0, *pads[half:]]
        how = {} if mode == "constant" else {"mode": mode}
        if self.opset < 11:
            return self.write_node("margin", "Pad", (source,), pads=whole, **how)
        return self.write_node("margin", "Pad", (source, self._put("margin.pads", _integers(*whole))), **how)

    def _pad_by_size(self, source: str, padding: Padding) -> str:
        """Write a Pad by `max(0, span - stride + (-size mod stride))`, half of it at either end.

        Batch and channels go along with span and stride 1, so that nothing is added to them.
        """
        if self.opset < 12:
            raise self._unknown("padding that follows from a size")
        steps = _integers(1, 1, *padding.strides)
        wider = _integers(0, 0, *(span - step for span, step in zip(padding.spans, padding.strides, strict=True)))

        def step(name: str, operator: str, *inputs: str | Tensor) -> str:
            ends = [self._put(f"margin.{name}.by", one) if isinstance(one, Tensor) else one for one in inputs]
            return self.write_node(f"margin.{name}", operator, ends)

        rest = step("rest", "Mod", step("less", "Neg", step("size", "Shape", source)), steps)
        both = step("all", "Max", step("lacking", "Add", rest, wider), _integers(0))
        small = step("small", "Div", both, _integers(2))
        large = step("large", "Sub", both, small)
        ends = (large, small) if padding.rule == "SAME_LOWER" else (small, large)
        return self.write_node("margin", "Pad", (source, self.write_node("margin.both", "Concat", ends, axis=0)))

    def write_shuffle(self, shuffle: TransposedAsConv) -> None:
        """Write what makes a transposed conv's output of that of its conv."""
        source, phases = str(self.nodes[-1].output[0]), shuffle.factor**2
        if self.opset >= 11:
            wide = self.write_node("shuffle", "DepthToSpace", (source,), blocksize=shuffle.factor, mode="CRD")
        else:  # which takes the channels of one phase in a row
            order = _integers(*range(shuffle.out_channels * phases)).unflatten(0, (-1, phases)).T.flatten()
            turned = self.write_node("phases", "Gather", (source, self._put("phases.order", order)), axis=1)
            wide = self.write_node("shuffle", "DepthToSpace", (turned,), blocksize=shuffle.factor)
        if not shuffle.has_spare:
            return
        top, bottom, left, right = shuffle.bounds
        cut = {"starts": [top, left], "ends": [bottom, right], "axes": [2, 3]}
        if self.opset < 10:
            self.write_node("cut", "Slice", (wide,), **cut)
            return
        stored = [self._put(f"cut.{name}", _integers(*values)) for name, values in cut.items()]
        self.write_node("cut", "Slice", (wide, *stored))

    def put_weights(self, path: str, module: nn.Module) -> list[str]:
        """Store the parameters of a module; return their names."""
        return [self._put(name, tensor) for name, tensor in module.named_parameters(path, recurse=False)]

    def _put(self, name: str, tensor: Tensor) -> str:
        return self.put(f"{self.prefix}.{name}", tensor)

    def write_node(self, part: str, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Append a node; return the name of its output."""
        wanted = (".".join(filter(None, (name, part))) for name in (self.conv.name or self.prefix, self.conv.output[0]))
        name, output = next(wanted), next(wanted)
        node = NodeProto(op_type=operator, name=proto.unique(name, self.names.nodes), domain=self.conv.domain)
        node.input.extend(inputs)
        node.output.append(proto.unique(output, self.names.values))
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return str(node.output[0])

    def _unknown(self, what: str) -> ExportError:
        return ExportError(
            f"{self.conv.output[0]}: opset {self.opset} has no node for the {what} of its form; "
            "choose a form of plain convs"
        )


def _convs_that_pad(graph: fx.Graph, root: nn.Module, padding: Padding) -> dict[fx.Node, frozenset[int]] | None:
    """Return which conv adds the padding of which axes; None where convs cannot add all of it."""
    left: dict[fx.Node, frozenset[int]] = {}  # axes whose padding a value still lacks
    unbiased: dict[fx.Node, bool] = {}  # whether a value is zero wherever the input is
    found: dict[fx.Node, frozenset[int]] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            left[node], unbiased[node] = padding.axes, True
            continue
        sources = node.all_input_nodes
        conv = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(conv, nn.Conv2d):
            (source,) = sources
            own = frozenset(axis for axis in left[source] if conv.kernel_size[axis] > 1)
            left[node], unbiased[node] = left[source] - own, unbiased[source] and conv.bias is None
            if (own and not unbiased[source]) or any(conv.stride[axis] > 1 for axis in left[node]):
                return None
            found[node] = own
        elif any(left[source] for source in sources):
            return None
        else:
            left[node], unbiased[node] = frozenset(), False
    return found


def _pads_of(conv: nn.Conv2d) -> tuple[int, ...]:
    """Return the padding of a conv of torch: all beginnings, then all ends."""
    if conv.padding == "same":
        totals = [(k - 1) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        return (*(total // 2 for total in totals), *(total - total // 2 for total in totals))
    return (0,) * 4 if isinstance(conv.padding, str) else (*conv.padding, *conv.padding)


def _integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")
