"""The bundle: everything a device and its engineer need, in one folder that appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import nn

from convsurgeon.conversion import Result
from convsurgeon.deploy.export import OnnxFile, export_onnx
from convsurgeon.files import BUNDLE, new_folder


@dataclass(frozen=True)
class Bundle:
    """Where the files are, and what the two exports say of themselves."""

    folder: Path
    original: OnnxFile
    converted: OnnxFile


def export(
    result: Result,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    opset: int = 18,
    before: Callable[[str], None] = lambda _name: None,
) -> Bundle:
    """Writes `original.onnx`, `model.onnx`, `plan.json`, `weights.safetensors`, `report.json` and `report.md`.

    Args:
        result: a conversion.
        folder: is made; an existing one is replaced whole if `overwrite` is true.
        overwrite: whether it may be.
        opset: of both ONNX files.
        before: is told each file's name before it is made.

    Raises:
        OutputError: the folder exists or cannot be written.
        ExportError: one of the models has no ONNX form; ParityError if its file computes something else.
    """
    with new_folder(folder, overwrite, BUNDLE) as temporary:
        files = []
        for name, model in (("original.onnx", result.original), ("model.onnx", result.model)):
            before(name)
            files.append(export_onnx(model, result.example, temporary / name, opset=opset))
        before("weights.safetensors")
        save_weights(result.model, temporary / "weights.safetensors")
        result.plan.save(temporary / "plan.json")
        (temporary / "report.json").write_text(result.report.to_json() + "\n", encoding="utf-8")
        (temporary / "report.md").write_text(result.report.to_markdown(), encoding="utf-8")
    target = Path(folder)
    return Bundle(target, *(file.moved_to(target / file.path.name) for file in files))


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a state dict under all its names; tensors that share storage are written once per name."""
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    path.write_bytes(save(tensors))  # save_file would make the file private
