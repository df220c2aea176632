"""A network written back into its own file: each conv that became something else is replaced, and nothing else.

Every other node, initializer, name and entry of the file stays byte for byte, except that 1-d convs are convs of one
row (see `rows`) and PReLU is written as ReLU and products (see `prelu`). Of a weight that nobody reads any more the
initializer goes, with the nodes that did nothing but compute it. New weights are stored in the old one's type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn

from convsurgeon.base.errors import ExportError, first_line
from convsurgeon.forms.as_conv import TransposedAsConv
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.form_nodes import TakenNames, form_nodes
from convsurgeon.onnxnet.network import FileConv, OnnxNetwork, weight_digest
from convsurgeon.onnxnet.prelu import rewrite_prelu
from convsurgeon.onnxnet.session import LARGEST_BYTES, weight_bytes_of

_OUTSIDE_BYTES = 1024


def changed_convs(network: OnnxNetwork) -> dict[str, FileConv]:
    """Return the convs that differ from the file's, by path."""
    modules = ((path, network.get_submodule(path), owner) for path, owner in network.file_convs.items())
    return {
        path: owner
        for path, module, owner in modules
        if not isinstance(module, nn.modules.conv._ConvNd) or weight_digest(module) != owner.fingerprint
    }


def rewrite(network: OnnxNetwork) -> ModelProto:
    """Return the file's graph with the network's convs in it."""
    model = ModelProto()
    model.CopyFrom(network.source.model)
    if found := changed_convs(network):
        _Writer(network, model).write(found)
    return model


def save_network(network: OnnxNetwork, path: Path) -> None:
    """Write a network's file; weights go into `NAME.data` beside it where the original's do, or must."""
    model = rewrite(network)
    if not rewrite_prelu(model) and not changed_convs(network) and not network.source.places:
        path.write_bytes(network.source.data)
        return
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
        proto.check(onnx.load(path, load_external_data=False), path)
    except Exception as error:  # the checker's and protobuf's errors share no base class
        raise ExportError(f"{path.name}: the rewritten graph is not valid ONNX: {first_line(error)}") from error


class _Writer:
    def __init__(self, network: OnnxNetwork, model: ModelProto) -> None:
        self.network, self.model, self.graph = network, model, model.graph
        self.names = TakenNames.of(model.graph)
        self.stored: dict[str, list[tuple[Tensor, str]]] = {}

    def write(self, found: Mapping[str, FileConv]) -> None:
        owners = {output: (path, owner) for path, owner in found.items() for output in owner.sizes}
        open_sizes = any(axis for one in self.network.file_inputs for axis, _ in one.open)
        made: list[NodeProto] = []
        idle: list[str] = []
        for node in self.graph.node:
            if not node.output or node.output[0] not in owners:
                made.append(NodeProto.FromString(node.SerializeToString()))
                continue
            path, owner = owners[node.output[0]]
            module = self.network.get_submodule(path)
            shuffle = module if isinstance(module, TransposedAsConv) else None
            made += form_nodes(
                module if shuffle is None else shuffle.conv,
                node,
                prefix=path if shuffle is None else f"{path}.conv",
                names=self.names,
                put=partial(self._store, np.dtype(owner.dtype)),
                opset=self.network.source.opset,
                padding=owner.padding,
                size=None if open_sizes else owner.sizes[node.output[0]],
                shuffle=shuffle,
            )
            idle += [name for name in node.input[1:] if name]
        del self.graph.node[:]
        self.graph.node.extend(made)
        self._drop(idle)

    def _store(self, dtype: np.dtype[Any], wanted: str, tensor: Tensor) -> str:
        """Store a weight, once where two calls of a conv have the same; return its name."""
        for known, name in self.stored.get(wanted, ()):
            if torch.equal(known, tensor):
                return name
        name = proto.unique(wanted, self.names.values)
        array = tensor.detach().cpu().numpy()
        values = np.ascontiguousarray(array if array.dtype.kind in "iu" else array.astype(dtype))
        proto.store(self.model, numpy_helper.from_array(values, name))
        self.stored.setdefault(wanted, []).append((tensor, name))
        return name

    def _drop(self, names: Iterable[str]) -> None:
        """Remove what nobody reads any more of some values, and what only they read."""
        waiting = list(dict.fromkeys(names))
        while waiting:
            name = waiting.pop()
            if proto.uses(self.graph)[name]:
                continue
            lists: tuple[Any, ...] = (self.graph.initializer, self.graph.input, self.graph.value_info)
            for entries in lists:
                for place in reversed([place for place, one in enumerate(entries) if one.name == name]):
                    del entries[place]
            for node in [one for one in self.graph.node if name in one.output]:
                if not any(proto.uses(self.graph)[output] for output in node.output):
                    waiting += proto.reads(node)
                    self.graph.node.remove(node)
