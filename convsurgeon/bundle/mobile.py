"""What mobile execution providers make of a file: how much of it they take, in how many pieces, and what stops them.

NNAPI and CoreML are judged by onnxruntime's own tables (`onnxruntime.tools.check_onnx_model_mobile_usability`), which
go by operator and static shape. It has no table for XNNPACK; that verdict follows the provider's documentation: 2-d
convs and pools, constant weights. XNNPACK shares the CPU's memory, so pieces cost little there and only convs must be
taken.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import GraphProto, ModelProto, NodeProto
from onnxruntime.tools.mobile_helpers import usability_checker

from convsurgeon.base.errors import ExportError, LatencyError, first_line
from convsurgeon.base.files import scratch
from convsurgeon.base.tables import Table
from convsurgeon.onnx.files import load_checked
from convsurgeon.onnxnet import proto
from convsurgeon.onnxnet.session import open_session, session_options

Suitability = Literal["yes", "maybe", "no"]
_PROVIDERS = ("NNAPI", "CoreML NeuralNetwork", "CoreML MLProgram")
_XNNPACK = {"Conv", "ConvTranspose", "AveragePool", "MaxPool", "Softmax", "MatMul", "Gemm", "Resize"}


@dataclass(frozen=True)
class ProviderVerdict:
    """What one provider makes of the file."""

    provider: str
    suitable: Suitability
    nodes: int
    taken: int
    pieces: int
    """Runs of nodes on the provider; every border between two costs a copy."""
    blocking: tuple[str, ...]
    """Nodes that it does not take, each as `name (operator)`."""


@dataclass(frozen=True)
class MobileVerdict:
    """What NNAPI, CoreML and XNNPACK make of the file."""

    providers: tuple[ProviderVerdict, ...]
    dynamic: tuple[str, ...]
    """Inputs without a static shape, which NNAPI and CoreML want."""

    @property
    def suitable(self) -> bool:
        """Whether every provider takes it well."""
        return all(one.suitable == "yes" for one in self.providers)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows = [{**vars(one), "blocking": list(one.blocking)} for one in self.providers]
        return {"suitable": self.suitable, "providers": rows, "dynamic": list(self.dynamic)}

    @property
    def table(self) -> Table:
        """One row per provider; of many blocking nodes the first three."""
        columns = (("provider", "text"), ("suitable", "text"), ("nodes taken", "text"), ("pieces", "count"))
        rows = tuple(
            (one.provider, one.suitable, f"{one.taken} of {one.nodes}", one.pieces, _some(one.blocking) or None)
            for one in self.providers
        )
        return Table("", (*columns, ("stopped by", "text")), rows)

    def __str__(self) -> str:
        notes = [f"note: input {name} has no static shape" for name in self.dynamic]
        return "\n".join((self.table.text(), *notes))


def mobile_check(path: str | Path) -> MobileVerdict:
    """Judges a file for NNAPI, CoreML and XNNPACK, as they would see it after the runtime's basic optimisations.

    Raises:
        ExportError: The file is not a valid ONNX model.
    """
    model = _as_seen(Path(path))
    owners = _owners(model.graph, Path(path))
    inputs = [info for info in model.graph.input if not _static(info)]
    verdicts = [*(_judge(name, model, owners) for name in _PROVIDERS), _xnnpack(model, owners)]
    return MobileVerdict(tuple(verdicts), tuple(info.name for info in inputs))


def _as_seen(path: Path) -> ModelProto:
    """The graph after basic optimisation, with shapes."""
    try:
        load_checked(path)
        with scratch() as folder:
            how = session_options(1, "basic")
            how.optimized_model_filepath = str(folder / "basic.onnx")
            open_session(path, how)
            seen = onnx.load(how.optimized_model_filepath, load_external_data=False)  # it lies beside the original
            return onnx.shape_inference.infer_shapes(seen, data_prop=True)
    except LatencyError as error:
        raise ExportError(str(error)) from error
    except Exception as error:  # the runtime's exceptions have no common base but Exception
        raise ExportError(f"{path}: cannot be checked: {first_line(error)}; export it again") from error


def _judge(provider: str, model: ModelProto, owners: dict[str, str]) -> ProviderVerdict:
    """The provider's verdict by the runtime's table, which is read under a name of its own in each release."""
    with contextlib.redirect_stdout(io.StringIO()):
        if provider == "NNAPI":
            found = usability_checker.check_nnapi_partitions(model, True)
        else:
            kind = provider.split()[1].lower()
            found = usability_checker.check_coreml_partitions(model, True, f"coreml_supported_{kind}_ops.md")
    taken = {_name(node) for group in found.supported_groups for node in group}
    blocking = [node for node in model.graph.node if _name(node) not in taken]
    suitable: dict[str, Suitability] = {"YES": "yes", "MAYBE": "maybe", "NO": "no"}
    return ProviderVerdict(
        provider,
        suitable[found.suitability().name],
        len(model.graph.node),
        found.num_supported_nodes,
        found.num_partitions,
        _labels(blocking, owners),
    )


def _xnnpack(model: ModelProto, owners: dict[str, str]) -> ProviderVerdict:
    known = {tensor.name for tensor in model.graph.initializer}
    known |= {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in known}
    ranks = proto.ranks(model.graph)
    taken = [node for node in model.graph.node if _xnnpack_takes(node, known, ranks)]
    names = {node.name for node in taken}
    missed = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose") and node.name not in names]
    pieces = sum(
        node.name in names and (index == 0 or model.graph.node[index - 1].name not in names)
        for index, node in enumerate(model.graph.node)
    )
    suitable: Suitability = "no" if missed or not taken else "yes"
    return ProviderVerdict("XNNPACK", suitable, len(model.graph.node), len(taken), pieces, _labels(missed, owners))


def _xnnpack_takes(node: NodeProto, known: set[str], ranks: dict[str, int]) -> bool:
    if node.op_type not in _XNNPACK:
        return False
    if node.op_type in ("Softmax", "MatMul", "Gemm"):
        return node.op_type == "Softmax" or node.input[1] in known
    weights = [name for name in node.input[1:] if name]
    return ranks.get(node.input[0], 0) == 4 and all(name in known for name in weights)


def _owners(graph: GraphProto, path: Path) -> dict[str, str]:
    """For each node the name of the file's node it came from: its own, or that of the first one behind it.

    Optimisation takes composed operators (HardSwish) apart, and the parts get names of the runtime's own.
    """
    file = onnx.load(path, load_external_data=False).graph
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


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
