"""What mobile execution providers do with a file: how much of it they take, in how many pieces, and what stops them.

NNAPI and CoreML are judged by onnxruntime's own tables (`onnxruntime.tools.check_onnx_model_mobile_usability`), which
go by operator and static shape. It has no table for XNNPACK; that verdict follows the provider's documentation: 2-d
convs and pools, constant weights. XNNPACK shares the CPU's memory, so pieces cost little there and only convs must be
taken.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto
from onnxruntime.tools.mobile_helpers import usability_checker

from convsurgeon.base.errors import ExportError, LatencyError, first_line
from convsurgeon.base.files import scratch
from convsurgeon.onnx.files import load_checked
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import open_session, session_options
from convsurgeon.report.bundle import MobileVerdict, ProviderVerdict, Suitability

_PROVIDERS = ("NNAPI", "CoreML NeuralNetwork", "CoreML MLProgram")
_XNNPACK = {"Conv", "ConvTranspose", "AveragePool", "MaxPool", "Softmax", "MatMul", "Gemm", "Resize"}


def mobile_check(path: str | Path) -> MobileVerdict:
    """Judge a file for NNAPI, CoreML and XNNPACK, as they would see it after the runtime's basic optimisations.

    Raises:
        ExportError: The file is not a valid ONNX model.
    """
    file, model = _as_seen(Path(path))
    owners = _owners(model.graph, file)
    inputs = [info for info in model.graph.input if not _static(info)]
    verdicts = [*(_judge(name, model, owners) for name in _PROVIDERS), _xnnpack(model, owners)]
    return MobileVerdict(tuple(verdicts), tuple(info.name for info in inputs))


def _as_seen(path: Path) -> tuple[GraphProto, ModelProto]:
    """Return a file's graph, and what it is after basic optimisation, with shapes; both without large values."""
    try:
        file = proto.without_values(load_checked(path)).graph
        with scratch() as folder:
            how = session_options(1, "basic")
            how.optimized_model_filepath = str(folder / "basic.onnx")
            open_session(path, how)
            seen = onnx.load(how.optimized_model_filepath, load_external_data=False)  # it lies beside the original
            proto.normalise(seen.graph)
            return file, onnx.shape_inference.infer_shapes(proto.without_values(seen), data_prop=True)
    except LatencyError as error:
        raise ExportError(str(error)) from error
    except Exception as error:  # the runtime's exceptions have no common base but Exception
        raise ExportError(f"{path}: cannot be checked: {first_line(error)}; export it again") from error


def _judge(provider: str, model: ModelProto, owners: dict[str, str]) -> ProviderVerdict:
    """Return a provider's verdict by the runtime's table."""
    with contextlib.redirect_stdout(io.StringIO()):
        if provider == "NNAPI":
            found = usability_checker.check_nnapi_partitions(model, True)
        else:
            kind = provider.split()[1].lower()
            found = usability_checker.check_coreml_partitions(model, True, f"coreml_supported_{kind}_ops.md")
    taken = {_name(node) for group in found.supported_groups for node in group}
    blocking = [node for node in model.graph.node if _name(node) not in taken]
    return ProviderVerdict(
        provider,
        found.suitability().name.lower(),
        len(model.graph.node),
        found.num_supported_nodes,
        found.num_partitions,
        _labels(blocking, owners),
    )


def _xnnpack(model: ModelProto, owners: dict[str, str]) -> ProviderVerdict:
    nodes = model.graph.node
    constant = {tensor.name for tensor in model.graph.initializer}
    constant |= {n.output[0] for n in nodes if n.op_type == "DequantizeLinear" and n.input[0] in constant}
    ranks = proto.ranks(model.graph)
    taken = [_xnnpack_takes(node, constant, ranks) for node in nodes]
    missed = [
        node for node, fits in zip(nodes, taken, strict=True) if not fits and node.op_type in ("Conv", "ConvTranspose")
    ]
    pieces = sum(fits and not before for before, fits in zip([False, *taken], taken, strict=False))
    suitable: Suitability = "no" if missed or not any(taken) else "yes"
    return ProviderVerdict("XNNPACK", suitable, len(nodes), sum(taken), pieces, _labels(missed, owners))


def _xnnpack_takes(node: NodeProto, constant: set[str], ranks: dict[str, int]) -> bool:
    if node.op_type not in _XNNPACK:
        return False
    if node.op_type in ("Softmax", "MatMul", "Gemm"):
        return node.op_type == "Softmax" or node.input[1] in constant
    weights = [name for name in node.input[1:] if name]
    return ranks.get(node.input[0], 0) == 4 and all(name in constant for name in weights)


def _owners(graph: GraphProto, file: GraphProto) -> dict[str, str]:
    """Return for each node the name of the file's node that it came from: its own, or that of the first after it.

    Optimisation takes composed operators (HardSwish) apart, and gives the parts names of its own.
    """
    known = {node.name for node in file.node} | set(proto.producers(file))
    owners: dict[str, str] = {}
    readers: dict[str, str] = {}
    for node in reversed(graph.node):
        name = _name(node)
        own = next((one for one in (node.name, *node.output) if one in known), readers.get(node.output[0], name))
        owners[name] = own
        readers.update(dict.fromkeys(node.input, own))
    return owners


def _name(node: NodeProto) -> str:
    return str(node.name or node.output[0])


def _labels(nodes: Sequence[NodeProto], owners: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{owners[_name(node)]} ({node.op_type})" for node in nodes)


def _static(info: onnx.ValueInfoProto) -> bool:
    shape = info.type.tensor_type.shape
    return info.type.tensor_type.HasField("shape") and all(dim.dim_value > 0 for dim in shape.dim)
