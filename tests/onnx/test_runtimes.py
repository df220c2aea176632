"""The converted file in other runtimes, where they are installed; see `benchmarks/other_runtimes.py` for how.

CONVSURGEON_RUNTIMES names a Python with openvino, ncnn and pnnx, CONVSURGEON_LITERT one with onnx2tf 1.29
and ai-edge-litert, CONVSURGEON_NODE a folder into which npm installed onnxruntime-node and onnxruntime-web.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convsurgeon as cs
from convsurgeon.graph.load import load_model, load_weights
from tests.benchmarks.other_runtimes import commands, measure

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _digits() -> tuple[nn.Module, np.ndarray[Any, Any]]:
    model = load_model(f"{EXAMPLES / 'digits.py'}:digit_net").eval()
    load_weights(model, EXAMPLES / "digits.safetensors")
    return model, np.load(EXAMPLES / "digits_calibration.npy")[:1].astype(np.float32).reshape(1, 1, 32, 32)


def _upscaler() -> tuple[nn.Module, np.ndarray[Any, Any]]:
    """Return a network with what runtimes get wrong, PReLU and a sum before a shuffle of pixels, and large outputs."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 64, 3, padding=1), nn.PReLU(64), nn.ConvTranspose2d(64, 1, 6, 2, 2)]
    return nn.Sequential(*parts).eval(), np.random.default_rng(0).random((1, 1, 64, 64), np.float32)


Files = tuple[tuple[Path, ...], np.ndarray[Any, Any]]


@pytest.fixture(scope="module", params=[_digits, _upscaler])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Return files of a network, dense and in two forms, and an image."""
    model, image = request.param()
    example, folder = torch.zeros(image.shape), tmp_path_factory.mktemp("files")
    models = {"original": model}
    for form in (cs.CP(rank=16), cs.DepthwiseSeparable(rank=2)):
        made = cs.convert(model, example, forms=[form], calibration=False, progress=False)
        assert made.changes
        models[form.label] = made.model
    for name, one in models.items():
        cs.onnx.export(one, example, folder / f"{name}.onnx")
    return tuple(folder / f"{name}.onnx" for name in models), image


@pytest.mark.parametrize("runtime", ["openvino", "ncnn", "litert", "onnxruntime-node", "onnxruntime-web"])
def test_a_converted_file_computes_the_same_elsewhere(runtime: str, files: Files) -> None:
    places = (os.environ.get("CONVSURGEON_RUNTIMES", sys.executable), os.environ.get("CONVSURGEON_LITERT"))
    known = commands(*places, os.environ.get("CONVSURGEON_NODE"))
    if runtime not in known:
        pytest.skip(f"{runtime} is not installed, or the variables of this file do not say where")
    paths, image = files
    found = measure(known[runtime], paths, image, rounds=4)
    right = found.errors
    if runtime == "litert" and image.shape[-1] == 64:  # onnx2tf 1.29.24: wrong pixel shuffles after a sum
        right = found.errors[:2]
    assert max(right) < 1e-5
    assert found.times.shape == (3, 4)
    assert found.times.min() > 0


def test_a_runtime_that_fails_says_why(files: Files) -> None:
    paths, image = files
    with pytest.raises(RuntimeError, match="ValueError: enough"):
        measure([sys.executable, "-c", "raise ValueError('enough')"], paths, image, rounds=1)
    with pytest.raises(RuntimeError, match="status 0"):
        measure([sys.executable, "-c", "print(1)"], paths, image, rounds=1)
