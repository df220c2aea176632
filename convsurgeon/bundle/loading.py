"""Check a bundle before it is used: it is whole, and was made from this original."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
from torch import nn

from convsurgeon.base.errors import LoadError
from convsurgeon.base.files import read_text
from convsurgeon.onnx.metadata import state_sha256
from convsurgeon.onnxnet.network import OnnxNetwork

SUMS = "SHA256SUMS"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_bundle(folder: Path, original: nn.Module) -> None:
    """Check that the plan and weights in a folder are what `export` wrote, and that its original is this one.

    A file that the folder does not hold is not checked.
    """
    sums = _sums(folder)
    for name, wanted in sums.items():
        used = name in ("plan.json", "weights.safetensors", "model.onnx") and (folder / name).is_file()
        if used and sha256(folder / name) != wanted:
            raise LoadError(f"{folder / name}: is not what {SUMS} says, so it was changed or damaged; export again")
    if isinstance(original, OnnxNetwork):
        source, own = sums.get("original.onnx", ""), hashlib.sha256(original.source.data).hexdigest()
        if source and source != own:
            raise LoadError(
                f"{folder}: was made from another file (SHA-256 {source[:12]}...); pass its own original.onnx"
            )
        return
    source = _source(folder / "model.onnx")
    if source and source != state_sha256(original):
        raise LoadError(
            f"{folder}: was made from an original with other weights (SHA-256 {source[:12]}...); "
            "pass the model and --weights that it was converted from"
        )


def _sums(folder: Path) -> dict[str, str]:
    try:
        lines = read_text(folder / SUMS).splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LoadError(f"{folder / SUMS}: cannot be read ({error}); export again") from error
    pairs = (line.split("  ", 1) for line in lines if "  " in line)
    return {name: found for found, name in pairs}


def _source(path: Path) -> str:
    """Return the hash of the original's state that an exported file holds; empty where there is none."""
    if not path.is_file():
        return ""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors share no base class
        raise LoadError(f"{path}: is not an ONNX file ({type(error).__name__}); export again") from error
    return next((entry.value for entry in model.metadata_props if entry.key == "source_sha256"), "")
