"""Whether a network gives the same for the same input: state that it keeps, and random numbers that it draws."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import CaptureError
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import float_tensors
from convsurgeon.graph.state import undisturbed


def check_repeatable(model: nn.Module, example: Example) -> None:
    """Refuse a network that keeps state between forwards, and warn of one that draws random numbers in eval mode."""
    try:
        with undisturbed(model):
            torch.manual_seed(0)
            first = float_tensors(example.run(model))
            torch.manual_seed(1)
            other = float_tensors(example.run(model))
            if any(one.is_meta for one in first) or _alike(first, other):
                return
            torch.manual_seed(0)
            again = float_tensors(example.run(model))
    except Exception:  # the user's own forward: whoever needs it says so
        return
    if not _alike(first, again):
        raise CaptureError(
            f"model: {type(model).__name__} gives something else for the same input once it has run, as where it keeps "
            "state between forwards; have forward begin anew each time, or take the state as an input"
        )
    warnings.warn(
        f"{type(model).__name__} draws random numbers in eval mode (F.dropout without training=self.training?): "
        "errors include those, and an export fails its check",
        stacklevel=3,
    )


def _alike(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    if [a.shape for a in one] != [b.shape for b in two]:
        return False
    scales = [float(a.nan_to_num(0.0, 0.0, 0.0).abs().max()) if a.numel() else 0.0 for a in one]
    triples = zip(one, two, scales, strict=True)
    return all(torch.allclose(a, b, rtol=1e-2, atol=1e-2 * scale, equal_nan=True) for a, b, scale in triples)
