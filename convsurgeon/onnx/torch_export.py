"""torch's two exporters: the one that captures the whole graph, and where that fails the one that traces a run.

The first refuses control flow that depends on values. The second follows the example through it and writes down what
it met, which is right wherever every input takes that way; a warning says so, and the parity gate tries other inputs.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import onnx
import torch
from onnx import ModelProto
from torch import nn

from convsurgeon.base.errors import ExportError, describe, first_line
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import part_before
from convsurgeon.graph.state import undisturbed, written_parameters
from convsurgeon.onnx.decompositions import decomposed_in_place
from convsurgeon.onnx.inputs import resize_example
from convsurgeon.onnx.node_names import SCOPES
from convsurgeon.onnx.quiet import quiet
from convsurgeon.onnx.signatures import signatures_kept
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.convs import path_of

Dynamic = Literal["batch", "size"] | None
_AXES: dict[str, dict[int, str]] = {"batch": {0: "batch"}, "size": {2: "height", 3: "width"}}


def run_exporter(model: nn.Module, example: Example, opset: int, dynamic: Dynamic) -> ModelProto:
    """Return the graph of a model on the CPU, as torch writes it; another opset than the one asked for may come out."""
    name = type(model).__name__
    try:
        changed = written_parameters(model, lambda: example.run(model))
    except Exception as error:  # the user's own forward
        raise ExportError(f"{name}: does not run on the example: {describe(error)}") from error
    if changed:  # torch's exporter may crash on these, and take the process with it
        raise ExportError(
            f"{changed[0]}: the forward writes to this parameter, which no ONNX file does; "
            "do it once before the export, and take it out of the forward"
        )
    # An example of batch 1 would make torch.export treat the batch as a constant.
    wide = resize_example(example, {0: lambda size: max(size, 2)}) if dynamic == "batch" else example
    try:
        return _capture(model, wide, opset, dynamic)
    except Exception as error:  # the exporter wraps whatever it fails on
        cause = _root_cause(error)
    try:
        traced = _trace(model, wide, opset, dynamic)
    except Exception as error:  # likewise
        raise ExportError(
            f"{name}: torch.onnx.export failed: {cause}; traced, it failed too: {_root_cause(error)}; "
            f"where the output depends on values (boxes, non-maximum suppression), {instead_of(model)}"
        ) from error
    warnings.warn(
        f"{name}: torch.export fails ({cause}); a run on the example was traced instead, "
        "so control flow that depends on values is as it was there",
        stacklevel=4,
    )
    return traced


def instead_of(model: nn.Module) -> str:
    """Return what to do with a network that picks among values."""
    return f"export {part_before(model)}, do the rest outside"


def _capture(model: nn.Module, example: Example, opset: int, dynamic: Dynamic) -> ModelProto:
    with (
        undisturbed(model),
        quiet(),
        contextlib.redirect_stderr(io.StringIO()),  # torch prints the whole graph where a guard fails
        signatures_kept(),
        decomposed_in_place(),
    ):
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


def _trace(model: nn.Module, example: Example, opset: int, dynamic: Dynamic) -> ModelProto:
    file = io.BytesIO()
    axes = {f"input_{index}": _open_axes(tensor, dynamic) for index, tensor in enumerate(example.tensors())}
    with undisturbed(model), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for every branch; one line says what came of them
        torch.onnx.export(
            model,
            example.args,
            file,  # type: ignore[arg-type]  # a file will do for this exporter
            kwargs=example.kwargs,
            dynamo=False,
            verbose=False,
            opset_version=opset,
            input_names=list(axes),
            dynamic_axes={name: found for name, found in axes.items() if found},
        )
    traced = onnx.load_from_string(file.getvalue())
    _name_like_captured(traced)
    return traced


def _name_like_captured(model: ModelProto) -> None:
    """Tell where a node came from as the other exporter does, and name folded weights after their conv."""
    taken = {tensor.name for tensor in model.graph.initializer}
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        path = path_of(node.name)
        node.metadata_props.add(key=SCOPES, value=str([path, node.name] if path else []))
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            for old, part in zip(node.input[1:], ("weight", "bias"), strict=False):
                wanted = f"{path}.{part}"
                if path and old.startswith("onnx::") and old in taken and wanted not in taken:
                    renamed.setdefault(old, wanted)
                    taken.add(wanted)
    proto.rename(model.graph, renamed)


def _open_axes(tensor: torch.Tensor, dynamic: Dynamic) -> dict[int, str]:
    """Return the open axes of an input, by number; sizes are those of images only."""
    if dynamic is None or (dynamic == "size" and tensor.dim() != 4):
        return {}
    return {axis: name for axis, name in _AXES[dynamic].items() if axis < tensor.dim()}


def _dynamic_shapes(example: Example, dynamic: Dynamic) -> dict[str, Any] | tuple[Any, ...]:
    """Return the exporter's `dynamic_shapes`: the nest of the arguments with open axes in place of the tensors."""

    def mark(tree: Any) -> Any:
        if isinstance(tree, torch.Tensor):
            return _open_axes(tree, dynamic)
        if isinstance(tree, Mapping):
            return {name: mark(item) for name, item in tree.items()}
        return type(tree)(mark(item) for item in tree) if isinstance(tree, tuple | list) else None

    marked: dict[str, Any] | tuple[Any, ...] = mark(example.kwargs) if example.kwargs else mark(example.args)
    return marked


def _root_cause(error: BaseException) -> str:
    """Return the message, cut, of the exception at the bottom of a `raise ... from ...` chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = first_line(error)
    return text if len(text) <= 160 else f"{text[:157]}..."
