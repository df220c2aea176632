"""torch's two exporters: the one that captures the whole graph, and where that fails the one that traces a run.

The first refuses control flow that depends on values. The second follows the example through it and writes down what
it met, which is right wherever every input takes that way; the parity gate tries others. What was traced is said.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import onnx
import torch
from onnx import ModelProto, NodeProto
from torch import nn

from convsurgeon.base.errors import ExportError, describe, first_line
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import part_before
from convsurgeon.graph.state import undisturbed, written_parameters
from convsurgeon.onnx import node_names as names
from convsurgeon.onnx.inputs import resized
from convsurgeon.onnx.quiet import quiet, root_cause
from convsurgeon.onnxnet import proto

Dynamic = Literal["batch", "size"] | None
_AXES: dict[str, dict[int, str]] = {"batch": {0: "batch"}, "size": {2: "height", 3: "width"}}


def run_exporter(model: nn.Module, example: Example, opset: int, dynamic: Dynamic) -> ModelProto:
    """The graph of a model on the CPU, as torch writes it.

    Args:
        model: Left as it was.
        example: In the order of `forward`.
        opset: Operator set that is asked for; another may come out.
        dynamic: Which dimensions stay open.

    Raises:
        ExportError: It does not run, writes to its own weights, or neither exporter takes it.
    """
    _check_writes(model, example)
    # An example of batch 1 would make torch.export treat the batch as a constant.
    wide = resized(example, {0: lambda size: max(size, 2)}) if dynamic == "batch" else example
    try:
        return _captured(model, wide, opset, dynamic)
    except Exception as error:  # the exporter wraps whatever it stumbles over
        cause = first_line(root_cause(error))
    try:
        found = _traced(model, wide, opset, dynamic)
    except Exception as error:  # likewise
        raise ExportError(_advice(model, cause, first_line(root_cause(error)))) from error
    warnings.warn(
        f"{type(model).__name__}: torch.export fails ({_cut(cause)}); a run on the example was traced instead, "
        "so control flow that depends on values is as it was there",
        stacklevel=4,
    )
    return found


def _check_writes(model: nn.Module, example: Example) -> None:
    """No file writes to its weights; where a model does, torch's exporter may crash and take the process with it."""
    try:
        names = written_parameters(model, lambda: example.run(model))
    except Exception as error:  # the user's own forward
        raise ExportError(f"{type(model).__name__}: does not run on the example: {describe(error)}") from error
    if names:
        raise ExportError(
            f"{names[0]}: the forward writes to this parameter, which no ONNX file does; "
            "do it once before the export, and take it out of the forward"
        )


def _captured(model: nn.Module, example: Example, opset: int, dynamic: Dynamic) -> ModelProto:
    """By torch.export."""
    # torch prints the whole graph to stderr where a guard fails
    with undisturbed(model), quiet(), contextlib.redirect_stderr(io.StringIO()):
        program = torch.onnx.export(
            model,
            example.args,
            kwargs=example.kwargs,
            dynamo=True,
            external_data=False,
            verbose=False,
            opset_version=opset,
            dynamic_shapes=None if dynamic is None else _dynamic_shapes(example, dynamic),
        )
    assert program is not None  # it is None only for the exporter that dynamo=True replaces
    return program.model_proto


def _traced(model: nn.Module, example: Example, opset: int, dynamic: Dynamic) -> ModelProto:
    """By a traced run."""
    file = io.BytesIO()
    inputs = [f"input_{index}" for index, _ in enumerate(example.tensors())]
    axes = {} if dynamic is None else _AXES[dynamic]
    pairs = zip(inputs, example.tensors(), strict=True)
    with undisturbed(model), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for every branch; what came of them is said in one line, and checked
        torch.onnx.export(
            model,
            example.args,
            file,  # type: ignore[arg-type]  # a file will do for this exporter
            kwargs=example.kwargs,
            dynamo=False,
            verbose=False,
            opset_version=opset,
            input_names=inputs,
            dynamic_axes={name: axes for name, one in pairs if axes and (dynamic == "batch" or one.dim() == 4)},
        )
    found = onnx.load_from_string(file.getvalue())
    _take_over_names(found)
    return found


def _take_over_names(model: ModelProto) -> None:
    """Where a node came from, told as the other exporter tells it; folded weights are named after their conv."""
    taken = {tensor.name for tensor in model.graph.initializer}
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        path = _path(node)
        node.metadata_props.add(key=names.SCOPES, value=str([path, node.name] if path else []))
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            for old, part in zip(node.input[1:], ("weight", "bias"), strict=False):
                wanted = f"{path}.{part}"
                if path and old.startswith("onnx::") and old in taken and wanted not in taken:
                    renamed.setdefault(old, wanted)
                    taken.add(wanted)
    proto.rename(model.graph, renamed)


def _path(node: NodeProto) -> str:
    """`layer1.0.conv1` from `/layer1/layer1.0/conv1/Conv`: a part that goes on with the one before replaces it."""
    path: list[str] = []
    for part in node.name.strip("/").split("/")[:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)


def _advice(model: nn.Module, first: str, second: str) -> str:
    """What to do where neither exporter takes a model."""
    return (
        f"{type(model).__name__}: torch.onnx.export failed: {_cut(first)}; traced, it failed too: {_cut(second)}; "
        f"where the output depends on values (boxes, non-maximum suppression), {instead(model)}"
    )


def instead(model: nn.Module) -> str:
    """What to do with a network that picks among values."""
    return f"export {part_before(model)}, do the rest outside"


def _cut(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:157]}..."


def _dynamic_shapes(example: Example, dynamic: str) -> dict[str, Any] | tuple[Any, ...]:
    """The exporter's `dynamic_shapes`: the nest of the arguments with {axis: name} in place of the tensors."""
    axes = _AXES[dynamic]

    def mark(tree: Any) -> Any:
        if isinstance(tree, torch.Tensor):
            return (
                {axis: name for axis, name in axes.items() if axis < tree.dim()}
                if dynamic == "batch" or tree.dim() == 4
                else {}
            )
        if isinstance(tree, Mapping):
            return {name: mark(item) for name, item in tree.items()}
        if isinstance(tree, tuple | list):
            return type(tree)(mark(item) for item in tree)
        return None

    marked: dict[str, Any] | tuple[Any, ...] = mark(example.kwargs) if example.kwargs else mark(example.args)
    return marked
