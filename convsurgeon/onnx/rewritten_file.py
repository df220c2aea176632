"""Networks of an ONNX file: written back into it, and their graph as a table of latencies needs it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor

from convsurgeon.base.files import check_file, new_file, scratch
from convsurgeon.graph.example import Example
from convsurgeon.onnx.parity import Parity, check_parity
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.convs import CONVS
from convsurgeon.onnxnet.network import FileConv, OnnxNetwork
from convsurgeon.onnxnet.prelu import rewrite_prelu
from convsurgeon.onnxnet.values import to_array
from convsurgeon.onnxnet.write import changed_convs, rewrite, save_network


def write_network(
    network: OnnxNetwork, example: Example, target: Path, overwrite: bool, images: Sequence[Any]
) -> Parity:
    """Write a network's file, and that of its weights where it has one, unless the parity that is returned fails."""
    with scratch() as folder:
        draft = folder / target.name
        save_network(network, draft)
        parity = check_parity(network, example, draft, images=images)
        if parity.passed:
            drafts = [one for one in (draft.with_name(f"{draft.name}.data"), draft) if one.exists()]
            for one in drafts:
                check_file(target.with_name(one.name), overwrite)
            for one in drafts:
                with new_file(target.with_name(one.name), overwrite) as place:
                    shutil.copyfile(one, place)
    return parity


def new_weights(network: OnnxNetwork) -> dict[str, Tensor]:
    """Return what `rebuild` needs beside the file and the plan: the tensors of the convs that are not the file's."""
    paths = tuple(f"{path}." for path in changed_convs(network))
    return {name: tensor for name, tensor in network.state_dict().items() if name.startswith(paths)}


def timing_graph(network: OnnxNetwork, *, as_it_was: bool = False) -> ModelProto:
    """Return the network's graph as the exporter would have named it, in the example's sizes, with padding in numbers.

    Every conv's weight is named after its module. Other names, and all weights, do not matter for the time it takes.
    `as_it_was` leaves PReLU as it is in the file.
    """
    model = rewrite(network)
    if not as_it_was:
        rewrite_prelu(model)
    graph = model.graph
    _fix_sizes(network, model)
    convs = {output: (path, conv) for path, conv in network.file_convs.items() for output in conv.sizes}
    taken = {node.name for node in graph.node}
    seen: set[str] = set()
    stored: set[str] = set()
    known = proto.constants(graph)
    for place, node in enumerate(graph.node):
        if not node.name or node.name in seen:
            node.name = proto.unique(node.name or f"node_{place}", taken)
        seen.add(node.name)
        if node.op_type not in CONVS or node.output[0] not in convs:
            continue
        path, conv = convs[node.output[0]]
        _write_padding(node, conv)
        weight = f"{path}.weight"
        if weight != node.input[1] and weight not in stored:
            stored.add(weight)
            tensor = known.get(node.input[1])
            if tensor is None:
                held = network.get_submodule(path).weight
                assert isinstance(held, Tensor)
                tensor = numpy_helper.from_array(to_array(held, TensorProto.FLOAT))
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = weight
        node.input[1] = weight
    proto.drop_unused(graph)
    return model


def _write_padding(node: NodeProto, conv: FileConv) -> None:
    """Write `auto_pad` as the numbers that it means on the example."""
    if conv.padding is None:
        return
    kept = [item for item in node.attribute if item.name not in ("auto_pad", "pads")]
    del node.attribute[:]
    node.attribute.extend(kept)
    pads = conv.padding.amounts(conv.sizes[node.output[0]])
    node.attribute.add(name="pads", ints=pads, type=AttributeProto.INTS)


def _fix_sizes(network: OnnxNetwork, model: ModelProto) -> None:
    """Put the example's sizes in the place of open ones."""
    shapes = {port.name: port.shape for port in network.file_inputs}
    for info in model.graph.input:
        shape = info.type.tensor_type.shape
        for axis, size in enumerate(shapes.get(info.name, ())):
            dim = shape.dim[axis] if axis < len(shape.dim) else shape.dim.add()
            dim.Clear()
            dim.dim_value = size
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
