"""The type of a numpy array, of whatever shape and kind of number, and arrays as tensors."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def as_tensor(values: Any) -> Tensor:
    """Return a tensor as it is, and an array or numbers as one on the CPU, whatever torch's default device is."""
    return values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
