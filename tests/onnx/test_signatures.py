"""Torch's table of operators is read once in a process: the files are the same, and torch is left as it was."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from onnxscript._internal import ast_utils
from onnxscript.values import TracedOnnxFunction
from torch import nn
from torch.onnx._internal.exporter import _schemas

from convsurgeon.graph.example import Example
from convsurgeon.onnx import signatures, torch_export


def _export() -> bytes:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.AdaptiveAvgPool2d(1)).eval()
    return torch_export.run_exporter(net, Example((torch.zeros(1, 3, 8, 8),), {}), 18, None).SerializeToString()


def test_sources_are_read_once_and_files_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    before = vars(TracedOnnxFunction)["function_ir"], _schemas.op_signature_from_function
    first = _export()
    assert (vars(TracedOnnxFunction)["function_ir"], _schemas.op_signature_from_function) == before
    read: list[str] = []
    honest = ast_utils.get_src_and_ast

    def count(function: Any) -> Any:
        read.append(function.__name__)
        return honest(function)

    monkeypatch.setattr(ast_utils, "get_src_and_ast", count)
    assert _export() == first
    assert not read
    monkeypatch.setattr(torch_export, "signatures_kept", nullcontext)
    assert _export() == first
    assert read  # or nothing was saved


def test_another_version_of_the_exporter_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    signatures._readers.cache_clear()
    monkeypatch.delattr(_schemas, "op_signature_from_function")
    with signatures.signatures_kept():
        assert not hasattr(_schemas, "op_signature_from_function")
