"""What an ONNX file of a bundle says of itself: where it came from and how it wants to be fed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from convsurgeon.base.errors import ExportError
from convsurgeon.planning.plan import Plan

_Shape = Sequence[int | str]
Signature = Sequence[tuple[str, _Shape]]


@dataclass(frozen=True)
class Preparation:
    """How images become inputs. Empty fields are not known.

    Args:
        mean: Subtracted from pixels in [0, 1], one per channel or one for all.
        std: Divides them then.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def check(self, inputs: Signature) -> None:
        """Compare the fields with the inputs of a file."""
        shape = inputs[0][1]
        channels = {shape[1], shape[3]} if len(shape) == 4 else {None}  # some files have them last
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) not in {1, *channels}:
                found = shape[1] if len(shape) == 4 else None
                raise ExportError(f"{name}: {len(values)} values for {found} channels; pass one for each or one")
        if not all(value > 0 for value in self.std):
            raise ExportError(f"std: every value must be above 0, got {list(self.std)}")

    def to_dict(self) -> dict[str, list[Any]]:
        """Return plain JSON values, empty fields left out."""
        return {name: list(values) for name, values in vars(self).items() if values}


def source_metadata(source: nn.Module, plan: Plan | None, preparation: Preparation) -> dict[str, str]:
    """Return entries for a file's `metadata_props`: hash of the original weights, what was changed, how to feed it."""
    changes = {} if plan is None else plan.changes
    forms = {name: change.form.to_dict() for name, change in changes.items()}
    entries = {"source_sha256": state_sha256(source), "plan": _json(forms)}
    return entries | {name: _json(values) for name, values in preparation.to_dict().items()}


def input_metadata(version: str, inputs: Signature) -> dict[str, str]:
    """Return entries that every exported file has: tool and versions, name, shape and layout of every input."""
    rows = [{"name": name, "shape": list(shape), "layout": layout(shape)} for name, shape in inputs]
    return {"tool": f"convsurgeon {version}", "torch": torch.__version__, "inputs": _json(rows)}


def layout(shape: _Shape) -> str:
    """Return `NCHW` for images, else the axes as far as they have names: `NC`, `N`."""
    return "NCHW" if len(shape) == 4 else "NC"[: len(shape)] if len(shape) < 3 else ""


def state_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of a model's state: name, dtype, shape and bytes of every tensor, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        ordered = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach().cpu().to_dense())
        digest.update(bytes(ordered.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
