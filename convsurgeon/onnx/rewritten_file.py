"""Networks that came of a file: written back into it, and drawn as `deploy.table` wants graphs to time."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto, numpy_helper
from torch import Tensor

from convsurgeon.base.errors import ExportError, WriteError
from convsurgeon.base.files import check_file, new_file, scratch
from convsurgeon.graph.example import Example
from convsurgeon.onnx.parity import Parity, check_parity
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.network import FileConv, OnnxNetwork
from convsurgeon.onnxnet.values import to_array
from convsurgeon.onnxnet.write import changed_convs, rewrite, save_network

HALF = (3e-2, 35.0)
"""Limits of parity, relative and in dB, for a file in half precision, which the runtime rounds at every step."""


def check_unasked(path: Path, opset: int, others: dict[str, Any]) -> None:
    """Refuses what would touch more of a file than its convs.

    Raises:
        ExportError: another opset, open dimensions or other names are asked for.
    """
    asked = next((name for name, value in others.items() if value), None) or ("opset" if opset != 18 else None)
    if asked is not None:
        raise ExportError(f"{path}: {asked}: an ONNX file keeps its opset, its sizes and its names; leave it out")


def write_checked(
    network: OnnxNetwork, example: Example, target: Path, overwrite: bool, images: Sequence[Any]
) -> Parity:
    """Writes a network's file, and the file of its weights where it has one, if the runtime computes the same.

    Returns:
        Parity; where it fails nothing is written.

    Raises:
        ExportError: a form has no counterpart in the file's operator set.
        WriteError: the file exists, or cannot be written.
    """
    relative, sqnr_db = limits(network)
    with scratch() as folder:
        draft = folder / target.name
        save_network(network, draft)
        parity = check_parity(network, example, draft, images=images, relative=relative, sqnr_db=sqnr_db)
        if parity.passed:
            beside = draft.with_name(f"{draft.name}.data")
            for one in (beside, draft):
                if one.exists():
                    check_file(target.with_name(one.name), overwrite)
            for one in (beside, draft):
                if one.exists():
                    with new_file(target.with_name(one.name), overwrite) as place:
                        shutil.copyfile(one, place)
    return parity


def keep_original(network: OnnxNetwork, example: Example, target: Path, images: Sequence[Any]) -> Parity:
    """Copies the user's own file, byte for byte, and the files that its weights lie in, into a folder.

    Raises:
        ParityError: torch computes something else than the file.
        WriteError: a file of weights would lie outside of the folder.
    """
    source = network.source
    target.write_bytes(source.data)
    for place in source.places:
        copy = target.parent / place
        if not copy.resolve().is_relative_to(target.parent.resolve()):
            raise WriteError(f"{source.path}: its weights lie in {place}, outside of its folder; save it in one folder")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path.parent / place, copy)
    relative, sqnr_db = limits(network)
    return check_parity(network, example, target, images=images, relative=relative, sqnr_db=sqnr_db)


def limits(network: OnnxNetwork) -> tuple[float, float]:
    """Of parity."""
    return HALF if network.half_precision else (1e-4, 80.0)


def new_weights(network: OnnxNetwork) -> dict[str, Tensor]:
    """What `rebuild` needs beside the file and the plan: the tensors of the convs that are not the file's."""
    paths = tuple(f"{path}." for path in changed_convs(network))
    return {name: tensor for name, tensor in network.state_dict().items() if name.startswith(paths)}


def timing_graph(network: OnnxNetwork) -> ModelProto:
    """The network's graph as the exporter would have named it: every conv's weight after its module, margins written.

    Names and weights are of no account for the time that it takes; sizes are those of the example.
    """
    model = rewrite(network)
    graph = model.graph
    _fix_sizes(network, model)
    paths = {output: (path, owner) for path, owner in network.file_convs.items() for output in owner.outputs}
    taken = {node.name for node in graph.node}
    stored: set[str] = set()
    known = proto.constants(graph)
    for place, node in enumerate(graph.node):
        if not node.name or sum(node.name == other.name for other in graph.node[:place]):
            node.name = proto.unique(node.name or f"node_{place}", taken)
        if node.op_type != "Conv" or node.output[0] not in paths:
            continue
        path, owner = paths[node.output[0]]
        _write_margin(node, owner)
        weight = f"{path}.weight"
        if weight != node.input[1] and weight not in stored:
            stored.add(weight)
            graph.initializer.append(_weight(network, path, weight, known.get(node.input[1])))
        node.input[1] = weight
    proto.drop_unused(graph)
    return model


def _weight(network: OnnxNetwork, path: str, name: str, known: TensorProto | None) -> TensorProto:
    made = TensorProto()
    if known is not None:
        made.CopyFrom(known)
    else:
        weight = network.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        made.CopyFrom(numpy_helper.from_array(to_array(weight, TensorProto.FLOAT)))
    made.name = name
    return made


def _write_margin(node: Any, owner: FileConv) -> None:
    """`auto_pad` as the numbers that it means on the example."""
    if owner.padding is None:
        return
    kept = [item for item in node.attribute if item.name not in ("auto_pad", "pads")]
    del node.attribute[:]
    node.attribute.extend(kept)
    pads = owner.padding.amounts(owner.size(node.output[0]))
    node.attribute.add(name="pads", ints=pads, type=7)  # AttributeProto.INTS


def _fix_sizes(network: OnnxNetwork, model: ModelProto) -> None:
    """The example's sizes in the place of open ones, which the file for timing does not know how to fill."""
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
