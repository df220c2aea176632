"""Weights that are subnormal numbers: next to nothing for the output, and on many processors very slow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MANY = 0.01
"""Share of a tensor from which on it is spoken of."""


def note_on_subnormals(model: nn.Module) -> tuple[str, ...]:
    """Return a note on the parameters of which a good part are subnormal numbers, if there are any."""
    found = [name for name, tensor in model.named_parameters() if _share(tensor) > MANY]
    if not found:
        return ()
    names = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if found[3:] else "")
    return (
        f"subnormal numbers among the weights ({names}) slow many processors down; zeroed, the original gives the same "
        "outputs and may be much faster by itself: p[p.abs() < torch.finfo(p.dtype).tiny] = 0.",
    )


def _share(tensor: Tensor) -> float:
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return 0.0
    tiny, few = torch.finfo(tensor.dtype).tiny, tensor.detach().reshape(-1).split(1 << 20)
    return sum(float(((part != 0) & (part.abs() < tiny)).sum()) for part in few) / tensor.numel()
