"""A model as one ONNX file that devices accept, behind a parity gate.

    exporter -> names from the module path -> tidy graph -> metadata out -> PReLU -> checker -> temporary file
      -> parity against torch -> renamed into place

Law: parity holds or nothing is written. The file appears under its name complete and checked, or not at all; the model
is left as it was. Opset and IR version are read back from what was written, because the exporter silently keeps another
opset than the one asked for if it cannot convert.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from convsurgeon.base.errors import CaptureError, ExportError, ParityError, WriteError, first_line
from convsurgeon.base.files import check_file, new_file
from convsurgeon.base.normal import in_normal_mode
from convsurgeon.base.version import version
from convsurgeon.graph.example import Example
from convsurgeon.graph.model_files import Model, open_model
from convsurgeon.onnx import graph, node_names
from convsurgeon.onnx.files import file_bytes
from convsurgeon.onnx.inputs import copy_to_cpu, order_example
from convsurgeon.onnx.metadata import input_metadata
from convsurgeon.onnx.parity import Parity, check_parity
from convsurgeon.onnx.rewritten_file import timing_graph, write_network
from convsurgeon.onnx.torch_export import Dynamic, instead_of, run_exporter
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.network import OnnxNetwork
from convsurgeon.onnxnet.prelu import rewrite_prelu
from convsurgeon.onnxnet.session import LARGEST_BYTES
from convsurgeon.planning.layers_as_convs import with_transposed

_OPSET = 18
_OPSETS = range(_OPSET, onnx.defs.onnx_opset_version() + 1)


@dataclass(frozen=True)
class OnnxFile:
    """A written ONNX file; every figure is read back from it."""

    path: Path
    size_bytes: int
    opset: int
    ir_version: int
    inputs: tuple[tuple[str, tuple[int | str, ...]], ...]
    """Name and shape of every input; a symbolic dimension is a string."""
    outputs: tuple[tuple[str, tuple[int | str, ...]], ...]
    parity: Parity

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.size_bytes / 1e6:.2f} MB, opset {self.opset}, IR {self.ir_version}, "
            f"parity {self.parity.relative:.1e} relative, {self.parity.sqnr_db:.1f} dB"
        )


@in_normal_mode
def export(
    model: Model,
    example: Any,
    path: str | Path,
    *,
    opset: int = _OPSET,
    overwrite: bool = False,
    dynamic: Dynamic = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    images: Sequence[Any] = (),
) -> OnnxFile:
    """Write a float32 model in eval mode as one self-contained ONNX file.

    Args:
        model: Exported as it is in eval mode; its modes, buffers and hooks stay as they are. A network that came of an
            ONNX file is written back into that file: only its convs and PReLU change. PReLU is written as ReLU and
            products, to the bit the same and faster.
        example: A tensor, a tuple of arguments or a dict of keyword arguments. Its shapes become the file's. None for
            a network that came of a file whose sizes are fixed.
        path: Where to write. The folder must exist.
        opset: Operator set; 18 with IR 8 loads widely. Checked against what was really written.
        overwrite: Whether a file of that name may be replaced.
        dynamic: `"batch"` leaves the first dimension of every input open, `"size"` the spatial ones of images. Mobile
            providers want neither.
        input_names: One per tensor of the example; the argument names of `forward` by default.
        output_names: `output`, or `output_0`, `output_1`, ... by default.
        metadata: Goes into the file's `metadata_props`, beside `tool`, `torch` and `inputs`, sorted by key.
        images: Further examples, best real ones, on which parity must hold.

    Raises:
        CaptureError: The example holds no tensor.
        WriteError: The file exists, or its folder is missing or cannot be written to. Nothing has been done then.
        ExportError: The model has no ONNX form, writes to its own weights, is not float32, is too large, or came out in
            another opset.
        ParityError: The file computes something else than the model, or cannot be run. Nothing is written.
    """
    return write_file(
        model, example, path, opset=opset, overwrite=overwrite, dynamic=dynamic, input_names=input_names,
        output_names=output_names, metadata=metadata or {}, images=images,
    )  # fmt: skip


def write_file(
    model: Model, example: Any, path: str | Path, *, opset: int = _OPSET, overwrite: bool = False,
    dynamic: Dynamic = None, input_names: Sequence[str] | None = None, output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str], images: Sequence[Any] = (), as_it_was: bool = False,
) -> OnnxFile:  # fmt: skip
    """Write a file as `export` does; `as_it_was` leaves PReLU as torch writes it."""
    target = check_file(path, overwrite)
    model, example = open_model(model, example)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers(), *Example.of(example).tensors())):
        raise CaptureError("export: model or example is on the meta device and has no values; load the weights first")
    inputs = order_example(model, example)
    if any(not tensor.numel() for tensor in inputs.tensors()):
        raise CaptureError(f"example: {inputs} holds no values, so the file could not be checked; pass an image")
    if isinstance(model, OnnxNetwork):
        asked = {"dynamic": dynamic, "input_names": input_names, "output_names": output_names, "opset": opset != _OPSET}
        if changed := next((name for name, value in asked.items() if value), None):
            raise ExportError(f"{path}: {changed}: an ONNX file keeps its opset, its sizes and its names; leave it out")
        model = with_transposed(model)
        parity = write_network(model, inputs, target, overwrite, images)
        _require(parity, target, model)
        return _describe(target, parity)
    subject = copy_to_cpu(model)
    exported = _torch_graph(subject, inputs, opset, dynamic, input_names, output_names, as_it_was)
    return _write_graph(exported, subject, inputs, target, metadata, images, opset, overwrite)


def write_exported(
    data: bytes, model: nn.Module, example: Any, target: Path, metadata: Mapping[str, str], images: Sequence[Any],
    as_it_was: bool = False,
) -> OnnxFile:  # fmt: skip
    """Write a file from the graph that `export_graph` gave for a model earlier, as `write_file` would.

    `data` is what `without_weights` made of that graph.
    """
    exported, subject = onnx.load_from_string(data), copy_to_cpu(model)
    own = dict(subject.named_parameters())
    for tensor in filter(proto.is_large, exported.graph.initializer):
        if not tensor.raw_data and tensor.name in own:
            tensor.raw_data = _bytes_of(own[tensor.name])
    if not as_it_was:
        rewrite_prelu(exported)
    return _write_graph(exported, subject, order_example(model, example), target, metadata, images)


def without_weights(exported: ModelProto, model: nn.Module) -> bytes:
    """Return a graph of a model without the large weights that are the model's own; the graph loses them, too."""
    own = dict(model.named_parameters())
    for tensor in filter(proto.is_large, exported.graph.initializer):
        weight = own.get(tensor.name)
        if weight is not None and weight.shape == (*tensor.dims,) and tensor.raw_data == _bytes_of(weight):
            tensor.ClearField("raw_data")
    return bytes(exported.SerializeToString())


def _bytes_of(weight: Tensor) -> bytes:
    return weight.detach().cpu().contiguous().numpy().tobytes()


def _write_graph(
    exported: ModelProto, model: nn.Module, example: Example, target: Path, metadata: Mapping[str, str],
    images: Sequence[Any], opset: int = _OPSET, overwrite: bool = False,
) -> OnnxFile:  # fmt: skip
    """Write a finished graph, unless parity with the model fails."""
    entries = {**input_metadata(version(), proto.signature(exported.graph.input)), **metadata}
    for key in sorted(entries):
        exported.metadata_props.add(key=key, value=entries[key])
    picking = graph.picking_operators(exported.graph)
    advice = f"it picks among values ({picking}), where rounding counts: {instead_of(model)}" if picking else ""
    with new_file(target, overwrite) as draft:
        graph.infer_shapes(exported)
        draft.write_bytes(_serialise(exported, opset))
        try:
            parity = check_parity(model, example, draft, images=images)
        except ParityError as error:  # a file that does not even run may be of a network that picks
            text = str(error).replace(str(draft), f"{target}: not written", 1)
            raise ParityError(f"{text}; {advice}" if advice else text) from error
        _require(parity, target, model, advice)
    return _describe(target, parity)


def copy_file(network: OnnxNetwork, example: Any, path: Path, images: Sequence[Any] = ()) -> OnnxFile:
    """Copy the user's own file to a path byte for byte, and the files that its weights lie in beside it."""
    source = network.source
    path.write_bytes(source.data)
    for place in source.places:
        copy = path.parent / place
        if not copy.resolve().is_relative_to(path.parent.resolve()):
            raise WriteError(f"{source.path}: its weights lie in {place}, outside of its folder; save it in one folder")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path.parent / place, copy)
    parity = check_parity(network, order_example(network, example), path, images=images)
    _require(parity, path, network)
    return _describe(path, parity)


def export_graph(model: nn.Module, example: Any, *, as_it_was: bool = False) -> ModelProto:
    """Return the graph that `write_file` would write, neither checked nor written: for looking at and for timing."""
    if isinstance(model, OnnxNetwork):
        return timing_graph(with_transposed(model), as_it_was=as_it_was)
    return _torch_graph(copy_to_cpu(model), order_example(model, example), as_it_was=as_it_was)


def _torch_graph(
    model: nn.Module, example: Example, opset: int = _OPSET, dynamic: Dynamic = None,
    inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None, as_it_was: bool = False,
) -> ModelProto:  # fmt: skip
    """Return torch's graph of a model that can be checked against the runtime, tidy and with names of these inputs."""
    if opset not in _OPSETS:
        raise ExportError(f"opset {opset}: the exporter writes {_OPSETS[0]} to {_OPSETS[-1]}; choose one of those")
    if dynamic not in (None, "batch", "size"):
        raise ExportError(f"dynamic={dynamic!r}: pass None, 'batch' or 'size'")
    weights = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in (*weights, *(("example", tensor) for tensor in example.tensors())):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ExportError(f"{name}: {tensor.dtype} cannot be checked against the runtime; pass model.float()")
    size_bytes = sum(tensor.numel() * tensor.element_size() for _, tensor in weights)
    if size_bytes > LARGEST_BYTES:
        raise ExportError(f"model: {size_bytes / 1e9:.2f} GB of weights; one ONNX file holds 2 GB, export parts of it")
    exported = run_exporter(with_transposed(model), example, opset, dynamic)
    casts = (proto.attributes(node).get("to") for node in exported.graph.node if node.op_type == "Cast")
    if onnx.TensorProto.BFLOAT16 in casts:
        raise ExportError(
            f"{type(model).__name__}: its forward computes in bfloat16 (torch.autocast), which onnxruntime's convs "
            "do not take; leave autocast out of the forward and call the model under it"
        )
    _finish(exported, opset, inputs, outputs)
    if not as_it_was:
        rewrite_prelu(exported)
    return exported


def _finish(model: ModelProto, opset: int, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> None:
    """Tidy the graph, name everything, and take the exporter's metadata away."""
    graph.tidy(model.graph)
    node_names.name_nodes(model.graph)
    node_names.name_constants(model.graph)
    count = len(model.graph.output)
    usual = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
    node_names.name_inputs_outputs(
        model.graph,
        _choose_names("input_names", inputs, [info.name for info in model.graph.input]),
        _choose_names("output_names", outputs, usual),
    )
    node_names.strip(model)
    model.graph.name = "model"
    model.producer_name, model.producer_version = "convsurgeon", version()
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])


def _choose_names(option: str, given: Sequence[str] | None, usual: list[str]) -> list[str]:
    if given is None:
        return usual
    if len(given) != len(usual) or len(set(given)) != len(given):
        raise ExportError(f"{option}: {list(given)} for {len(usual)} tensors; pass that many different names")
    return list(given)


def _serialise(model: ModelProto, opset: int) -> bytes:
    """Return the bytes of the file, after the checks that need no runtime."""
    if proto.opset_of(model) != opset:
        raise ExportError(f"opset {opset}: torch wrote opset {proto.opset_of(model)} instead; ask for that one or 18")
    try:
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
    except Exception as error:  # the checker's and protobuf's errors share no base class
        raise ExportError(f"model: the exported graph is not valid ONNX: {first_line(error)}") from error
    return data


def _require(parity: Parity, target: Path, model: nn.Module, advice: str = "") -> None:
    if parity.passed:
        return
    broken = [name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())]
    if broken:
        raise ParityError(f"{target}: not written, {broken[0]} holds NaN or infinity; load weights from before")
    raise ParityError(
        f"{target}: not written, parity fails by the fault of {parity.fault}: relative error {parity.relative:.1e} "
        f"(limit {parity.relative_limit:g}), SQNR {parity.sqnr_db:.1f} dB (limit {parity.sqnr_limit_db:g}); "
        f"is the model deterministic in eval mode?{advice and f' And {advice}'}"
    )


def _describe(path: Path, parity: Parity) -> OnnxFile:
    model = onnx.load(path, load_external_data=False)
    return OnnxFile(
        path=path,
        size_bytes=file_bytes(path, model),
        opset=proto.opset_of(model),
        ir_version=model.ir_version,
        inputs=proto.signature(proto.free_inputs(model.graph)),
        outputs=proto.signature(model.graph.output),
        parity=parity,
    )
