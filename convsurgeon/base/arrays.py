"""The type of a numpy array, of whatever shape and kind of number, and arrays as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsurgeon.base.errors import CalibrationError

Array = NDArray[Any]


def as_tensor(values: Any) -> Tensor:
    """Return a tensor as it is, and an array or numbers as one on the CPU, whatever torch's default device is.

    Raises:
        CalibrationError: the array holds objects or text.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind not in "biufc":
        raise CalibrationError(f"array of {values.dtype}: expected numbers; pass np.stack(images).astype('float32')")
    if isinstance(values, np.ndarray):  # which torch takes in the machine's own order of bytes, and never backwards
        values = values.astype(values.dtype.newbyteorder("="), copy=any(step < 0 for step in values.strides))
    return values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
