"""The type of a numpy array, of whatever shape and kind of number, and arrays as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def as_tensor(values: Any) -> Tensor:
    """Return a tensor as it is, and an array or numbers as one on the CPU, whatever torch's default device is."""
    if isinstance(values, np.ndarray):  # which torch takes in the machine's own order of bytes, and never backwards
        values = values.astype(values.dtype.newbyteorder("="), copy=any(step < 0 for step in values.strides))
    return values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
