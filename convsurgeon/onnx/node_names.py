"""Node and value names from the module path, and everything local taken out of the file.

The exporter remembers for every node the modules it came from (`pkg.torch.onnx.name_scopes`). A module with nothing
inside gives its name to its main node (`layer1.0.conv1.branches.0.depthwise`); other nodes are called after the module
they stand in and their operator (`layer1.0.add`). A second call of the same module gets a number. Values carry the name
of the node that makes them, because the runtime's profiler and quantiser speak of values.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from onnx import GraphProto, ModelProto, NodeProto

from convsurgeon.onnxnet import proto

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter writes the modules that a node came from, outermost first, and the operator."""


def name_nodes(graph: GraphProto) -> None:
    """Rename all nodes and the values between them, in place."""
    paths = [_path(node) for node in graph.node]
    parents = {path.rsplit(".", count)[0] for path in paths for count in range(1, path.count(".") + 1)} | {""}
    main = _main_nodes(graph, paths)
    fixed = {info.name for info in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    taken_nodes: set[str] = set()
    taken_values = set(fixed)
    renamed: dict[str, str] = {}
    for index, (node, path) in enumerate(zip(graph.node, paths, strict=True)):
        plain = path if path not in parents and index in main else ".".join(filter(None, (path, node.op_type.lower())))
        node.name = proto.unique(plain, taken_nodes)
        for number, output in enumerate(node.output):
            if output and output not in fixed:
                renamed[output] = proto.unique(node.name if number == 0 else f"{node.name}.{number}", taken_values)
    proto.rename(graph, renamed)


def name_constants(graph: GraphProto) -> None:
    """Name folded biases after their conv, and constants that the exporter numbered (`val_63`) after their reader."""
    taken = {tensor.name for tensor in graph.initializer}
    numbered = {name for name in taken if name.removeprefix("val_").isdigit()}
    counts = proto.uses(graph)
    renamed: dict[str, str] = {}
    for node in graph.node:
        weight, bias = (*node.input[1:3], "", "")[:2]
        if node.op_type == "Conv" and weight.endswith(".weight") and counts[bias] == 1 and bias in taken:
            wanted = weight.removesuffix("weight") + "bias"
            if wanted not in taken:
                renamed[bias] = proto.unique(wanted, taken)
        for position, name in enumerate(node.input):
            if name in numbered and name not in renamed:
                renamed[name] = proto.unique(f"{node.name}.constant{position}", taken)
    proto.rename(graph, renamed)


def name_inputs_outputs(graph: GraphProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Rename the graph's own inputs and outputs; both lists must have the right length."""
    wanted = dict(zip((info.name for info in graph.input), inputs, strict=True))
    wanted |= dict(zip((info.name for info in graph.output), outputs, strict=True))
    # Inner values that bear such a name are renamed first.
    inner = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
    taken = inner | set(wanted) | set(wanted.values())
    clashes = (set(wanted.values()) & inner) - set(wanted)
    proto.rename(graph, {name: proto.unique(name, taken) for name in sorted(clashes)})
    proto.rename(graph, wanted)
    for info in (*graph.input, *graph.output):
        info.name = wanted[info.name]


def strip(model: ModelProto) -> None:
    """Remove all metadata and doc strings: they hold stack traces with local paths."""
    messages: list[object] = [model]
    for function in model.functions:
        messages += [function, *function.node]
    for graph in proto.graphs(model.graph):
        infos = (*graph.input, *graph.output, *graph.value_info)
        messages += [graph, *graph.node, *infos, *graph.initializer]
    for message in messages:
        for field in ("metadata_props", "doc_string"):
            if field in message.DESCRIPTOR.fields_by_name:  # type: ignore[attr-defined]
                message.ClearField(field)  # type: ignore[attr-defined]


def _path(node: NodeProto) -> str:
    """Return the dotted path of the module that a node came from; empty for the model itself.

    A conv into which a batch norm was folded is the conv, whatever the exporter says, so the weight's owner goes first.
    """
    if node.op_type in ("Conv", "ConvTranspose", "Gemm") and node.input[1].endswith(".weight"):
        return str(node.input[1].removesuffix(".weight"))
    for item in node.metadata_props:
        if item.key == SCOPES:
            scopes = ast.literal_eval(item.value)
            return str(scopes[-2]) if len(scopes) > 1 else ""
    return ""


def _main_nodes(graph: GraphProto, paths: Sequence[str]) -> set[int]:
    """Return the positions of nodes that may bear their module's bare name.

    These are those with weights, or where a module has none, those of its first operator.
    """
    weights = {tensor.name for tensor in graph.initializer if tensor.dims}
    members: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        members.setdefault(path, []).append(index)
    main: set[int] = set()
    for path, own in members.items():
        weighted = {
            index
            for index in own
            if any(name in weights and name.startswith(f"{path}.") for name in graph.node[index].input)
        }
        first = graph.node[own[0]].op_type
        main |= weighted or {index for index in own if graph.node[index].op_type == first}
    return main
