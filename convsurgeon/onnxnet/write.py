"""A network written back into its own file: each conv that became something else is replaced, and nothing else.

Every other node, initializer, name and entry of the file stays byte for byte. Of a weight that nobody reads any more
the initializer goes, with the nodes that did nothing but compute it. New weights are stored in the old one's type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor, nn

from convsurgeon.base.errors import ExportError, first_line
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.form_nodes import Stage, stages
from convsurgeon.onnxnet.network import OnnxNetwork, Owner, fingerprint
from convsurgeon.onnxnet.session import LARGEST_BYTES, weight_bytes_of
from convsurgeon.onnxnet.values import reads

_OUTSIDE_BYTES = 1024


def changed(network: OnnxNetwork) -> dict[str, Owner]:
    """The convs that are others than the file's, by path."""
    modules = ((path, network.get_submodule(path), owner) for path, owner in network.owners.items())
    return {
        path: owner
        for path, module, owner in modules
        if not isinstance(module, nn.modules.conv._ConvNd) or fingerprint(module) != owner.fingerprint
    }


def written(network: OnnxNetwork) -> ModelProto:
    """The file's graph with the network's convs in it.

    Raises:
        ExportError: a form holds what the file's operator set has no node for.
    """
    model = ModelProto()
    model.CopyFrom(network.source.model)
    if found := changed(network):
        _Writer(network, model).write(found)
    return model


def store(network: OnnxNetwork, path: Path) -> None:
    """Writes a network's file; weights go into a file beside it, `NAME.data`, where the original's do, or must.

    Raises:
        ExportError: as `written`, or the graph is not valid.
    """
    if not changed(network) and not network.source.places:
        path.write_bytes(network.source.data)
        return
    model = written(network)
    outside = bool(network.source.places) or weight_bytes_of(model) > LARGEST_BYTES
    try:
        if outside:
            onnx.save(
                model,
                path,
                save_as_external_data=True,
                location=f"{path.name}.data",
                size_threshold=_OUTSIDE_BYTES,
                convert_attribute=False,
            )
        else:
            path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(path))
    except Exception as error:  # the checker's and protobuf's errors share no base class
        raise ExportError(f"{path.name}: the rewritten graph is not valid ONNX: {first_line(error)}") from error


class _Writer:
    """Puts nodes in the place of convs."""

    def __init__(self, network: OnnxNetwork, model: ModelProto) -> None:
        self.network, self.model, self.graph = network, model, model.graph
        inner = list(proto.graphs(model.graph))
        self.nodes = {node.name for graph in inner for node in graph.node}
        self.values = {name for graph in inner for node in graph.node for name in (*node.input, *node.output)}
        self.values |= {info.name for graph in inner for info in (*graph.input, *graph.output)}
        self.values |= {tensor.name for graph in inner for tensor in graph.initializer}
        self.stored: dict[tuple[str, str], str] = {}

    def write(self, found: Mapping[str, Owner]) -> None:
        """Replaces the nodes of some convs."""
        paths = {output: path for path, owner in found.items() for output in owner.outputs}
        made: list[NodeProto] = []
        idle: list[str] = []
        for node in self.graph.node:
            path = paths.get(node.output[0]) if node.output else None
            if path is None:
                made.append(NodeProto.FromString(node.SerializeToString()))
            else:
                made += self._replaced(node, path)
                idle += [name for name in node.input[1:] if name]
        del self.graph.node[:]
        self.graph.node.extend(made)
        self._drop(idle)

    def _replaced(self, node: NodeProto, path: str) -> list[NodeProto]:
        """The nodes of what stands at a path, the last of which has the name that the conv's output had."""
        owner, module = self.network.owners[path], self.network.get_submodule(path)
        chain = stages(module, node, owner, self.network.source.opset)
        names: dict[str, str] = {"": node.input[0]}
        made = []
        for place, stage in enumerate(chain):
            last = place == len(chain) - 1
            output = node.output[0] if last else proto.unique(f"{node.output[0]}.{stage.name}", self.values)
            names[stage.key] = output
            weights = [self._weight(path, stage, part, tensor, owner) for part, tensor in stage.weights]
            inputs = [*(names[key] for key in stage.inputs), *weights]
            name = proto.unique(".".join(filter(None, (node.name or path, stage.name))), self.nodes)
            own = NodeProto(op_type=stage.operator, name=name, domain=node.domain)
            own.input.extend(inputs)
            own.output.append(output)
            own.attribute.extend(helper.make_attribute(key, value) for key, value in stage.attributes.items())
            made.append(own)
        return made

    def _weight(self, path: str, stage: Stage, part: str, tensor: Tensor, owner: Owner) -> str:
        """The name of a stored weight, which two calls of one conv share."""
        key = (path, f"{stage.name}.{part}")
        if key not in self.stored:
            name = proto.unique(".".join(filter(None, (path, stage.name, part))), self.values)
            array = tensor.detach().cpu().numpy()
            kind = array.dtype if array.dtype.kind in "iu" else np.dtype(owner.dtype)
            made = numpy_helper.from_array(np.ascontiguousarray(array.astype(kind)), name)
            self.graph.initializer.append(made)
            if self.model.ir_version < 4:  # in which weights are inputs, too
                self.graph.input.append(helper.make_tensor_value_info(name, made.data_type, list(made.dims)))
            self.stored[key] = name
        return self.stored[key]

    def _drop(self, names: Iterable[str]) -> None:
        """Takes out what nobody reads any more of some values, and what only they read."""
        waiting = list(dict.fromkeys(names))
        while waiting:
            name = waiting.pop()
            if proto.uses(self.graph)[name]:
                continue
            _remove(self.graph.initializer, name)
            _remove(self.graph.input, name)
            _remove(self.graph.value_info, name)
            makers = [place for place, node in enumerate(self.graph.node) if name in node.output]
            for place in makers:
                node = self.graph.node[place]
                if not any(proto.uses(self.graph)[output] for output in node.output):
                    waiting += reads(node)
                    del self.graph.node[place]


def _remove(items: object, name: str) -> None:
    """One entry of a list of a graph, by its name."""
    entries: list[ValueInfoProto] = items  # type: ignore[assignment]
    for place in reversed([place for place, one in enumerate(entries) if one.name == name]):
        del entries[place]
