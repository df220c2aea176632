"""Images from a file or a folder, as a network of one input takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import convsurgeon as cs
from convsurgeon.calibration.images import Images


def load(source: str | Path, shape: Sequence[int], **options: Any) -> Tensor:
    """Reads all of them for an input of a shape."""
    like = cs.Example.of(torch.zeros(shape))
    return torch.cat([batch.tensors()[0] for batch in Images(source, **options).batches(like)])
