"""What each kind of target asks for stands in the graph that is written for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

import convsurgeon as cs
from convsurgeon.int8 import target as targets
from tests.int8.graphs import BRANCHES, CHAIN, feeds

INT8, UINT8 = TensorProto.INT8, TensorProto.UINT8


def _written(target: cs.onnx.Target | None, folder: Path, model: ModelProto | None = None) -> tuple[ModelProto, Any]:
    source, path = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(CHAIN() if model is None else model, source)
    done = cs.onnx.quantize(source, path, feeds(), target=target, sqnr_db=-100, overwrite=True)
    return onnx.load(path), done


def _zeros(model: ModelProto) -> list[TensorProto]:
    """Zero points of everything that is rounded while it runs."""
    known = {one.name: one for one in model.graph.initializer}
    return [known[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def _weights(model: ModelProto) -> dict[str, tuple[TensorProto, TensorProto]]:
    """Weight -> its levels and its scales."""
    known = {one.name: one for one in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and "weight_q" in node.input[0]]
    return {node.input[0]: (known[node.input[0]], known[node.input[1]]) for node in nodes}


def test_onnxruntime_gets_unsigned_values_and_weights_per_channel(tmp_path: Path) -> None:
    model, _ = _written(None, tmp_path)
    assert {zero.data_type for zero in _zeros(model)} == {UINT8}
    weights = _weights(model)
    assert len(weights) >= 3  # the last stays in float where a channel would get but few steps
    for levels, scales in weights.values():
        assert levels.data_type == INT8
        assert list(scales.dims) == [levels.dims[0]]
    assert "Relu" not in {node.op_type for node in model.graph.node}  # zero is the end of its range


@pytest.mark.parametrize("activations", ["int8", "uint8"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_an_npu_gets_what_it_is_told_to_want(activations: Any, per_channel: bool, tmp_path: Path) -> None:
    model, done = _written(cs.onnx.Target.npu(activations, per_channel=per_channel), tmp_path)
    zeros = _zeros(model)
    assert {zero.data_type for zero in zeros} == {INT8 if activations == "int8" else UINT8}
    if activations == "int8":
        assert all(not numpy_helper.to_array(zero).any() for zero in zeros)  # symmetric
    for levels, scales in _weights(model).values():
        assert levels.data_type == INT8
        assert int(np.prod(scales.dims)) == (levels.dims[0] if per_channel else 1)
    for info in (*model.graph.input, *model.graph.output):
        assert all(size.dim_value > 0 for size in info.type.tensor_type.shape.dim)
    (note,) = done.notes
    assert note.startswith("npu prefers widths that are multiples of 32; stem (6), reduce (10), depthwise")


def test_widths_that_fit_are_not_noted(tmp_path: Path) -> None:
    assert _written(cs.onnx.Target.npu(align=2), tmp_path)[1].notes == ()


def test_branches_are_one_conv_for_every_target(tmp_path: Path) -> None:
    for target in (cs.onnx.Target.onnxruntime("vnni"), cs.onnx.Target.npu()):
        model, _ = _written(target, tmp_path, BRANCHES(2, (True, False)))
        assert [node.op_type for node in model.graph.node].count("Conv") == 3
        assert "Add" not in {node.op_type for node in model.graph.node}


def test_open_shapes_are_refused_where_they_must_be_fixed(tmp_path: Path) -> None:
    source = tmp_path / "open.onnx"
    onnx.save(CHAIN(batch="batch"), source)
    with pytest.raises(
        cs.errors.ExportError, match=r"x: has open dimensions, and npu wants fixed shapes; export with dynamic"
    ):
        cs.onnx.quantize(source, tmp_path / "int8.onnx", feeds(), target=cs.onnx.Target.npu())
    assert not (tmp_path / "int8.onnx").exists()


def test_seven_bits_where_sums_of_products_saturate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for processor, most in (("avx2", 64), ("vnni", 127), ("arm", 127)):
        levels = [one for one, _ in _weights(_written(cs.onnx.Target.onnxruntime(processor), tmp_path)[0]).values()]
        sizes = [np.abs(numpy_helper.to_array(one).astype(int)).max() for one in levels]
        assert max(sizes) <= most
        assert max(sizes) > 0.9 * most
    monkeypatch.setattr(targets, "processor_flags", lambda: None)
    assert cs.onnx.Target.onnxruntime().reduce_range


def test_what_no_target_wants_is_refused() -> None:
    with pytest.raises(cs.errors.ExportError, match=r"activations='float'; pass 'uint8' or 'int8'"):
        cs.onnx.Target.npu("float")  # type: ignore[arg-type]
    with pytest.raises(cs.errors.ExportError, match=r"align=0; pass a whole number from 1"):
        cs.onnx.Target.npu(align=0)
    with pytest.raises(cs.errors.ExportError, match=r"processor 'z80'; pass one of here, vnni"):
        cs.onnx.Target.onnxruntime("z80")  # type: ignore[arg-type]
