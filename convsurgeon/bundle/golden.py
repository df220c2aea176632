"""One input and the output that the torch model gives for it, for whoever ports the file to a device."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from convsurgeon.graph.example import Example
from convsurgeon.graph.state import undisturbed
from convsurgeon.onnx import inputs
from convsurgeon.onnx.exporter import OnnxFile

INPUTS, OUTPUTS = "golden_inputs.npz", "golden_outputs.npz"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def save_golden(model: nn.Module, example: Example, file: OnnxFile, folder: Path) -> None:
    """Writes `golden_inputs.npz` and `golden_outputs.npz`, arrays under the names of the file's inputs and outputs."""
    with undisturbed(model):
        found = [tensor.detach().cpu().numpy() for tensor in inputs.run_flat(model, example)]
    given = [tensor.numpy() for tensor in example.tensors()]
    _save(folder / INPUTS, dict(zip((name for name, _ in file.inputs), given, strict=True)))
    _save(folder / OUTPUTS, dict(zip((name for name, _ in file.outputs), found, strict=True)))


def _save(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """An npz with the same bytes for the same arrays, whatever their names: `numpy.savez` cannot take `file`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            target = io.BytesIO()
            np.lib.format.write_array(target, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), target.getvalue())
