"""The converted file in other runtimes, where they are installed; see `benchmarks/other_runtimes.py` for how.

CONVSURGEON_RUNTIMES names a Python with openvino, ncnn and pnnx, CONVSURGEON_LITERT one with onnx2tf and
ai-edge-litert, CONVSURGEON_NODE a folder into which npm installed onnxruntime-node and onnxruntime-web.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import convsurgeon as cs
from convsurgeon.graph.load import load_model, load_weights
from tests.benchmarks.other_runtimes import commands, measure

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("files")
    model = load_model(f"{EXAMPLES / 'digits.py'}:digit_net").eval()
    load_weights(model, EXAMPLES / "digits.safetensors")
    example = torch.zeros(1, 1, 32, 32)
    forms: list[cs.Form] = [cs.CP(rank=32), cs.DepthwiseSeparable(rank=2)]
    made = cs.convert(model, example, forms=forms, calibration=False)
    assert made.changes
    cs.onnx.export(model, example, folder / "original.onnx")
    cs.onnx.export(made.model, example, folder / "model.onnx")
    return folder / "original.onnx", folder / "model.onnx"


@pytest.mark.parametrize("runtime", ["openvino", "ncnn", "litert", "onnxruntime-node", "onnxruntime-web"])
def test_a_converted_file_computes_the_same_elsewhere(runtime: str, files: tuple[Path, ...]) -> None:
    places = (os.environ.get("CONVSURGEON_RUNTIMES", sys.executable), os.environ.get("CONVSURGEON_LITERT"))
    known = commands(*places, os.environ.get("CONVSURGEON_NODE"))
    if runtime not in known:
        pytest.skip(f"{runtime} is not installed, or the variables of this file do not say where")
    image = np.load(EXAMPLES / "digits_calibration.npy")[:1].astype(np.float32).reshape(1, 1, 32, 32)
    found = measure(known[runtime], files, image, rounds=4)
    assert max(found.errors) < 1e-5
    assert found.times.shape == (2, 4)
    assert found.times.min() > 0
