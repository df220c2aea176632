"""Pixels of every bit depth as numbers from 0 to 1.

A depth is the type's own: 8 bits go to 255, 16 to 65535. Wider whole numbers and signed ones hold pictures of 8 or 16
bits as decoders give them, and are read by what they reach. Floating-point numbers are taken as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from convsurgeon.base.errors import CalibrationError

_DEPTHS = {"bool": 1, "uint8": 255, "uint16": 65535}


def unit(pixels: npt.NDArray[Any], source: object) -> Tensor:
    """Pixels as float32, whole numbers brought into [0, 1].

    Args:
        pixels: of any real type.
        source: where they come from, for messages.

    Raises:
        CalibrationError: whole numbers below 0, or beyond 16 bits.
    """
    if pixels.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    most = _DEPTHS.get(str(pixels.dtype)) or _reached(pixels, source)
    return torch.from_numpy(np.divide(pixels, most, dtype=np.float32))


def _reached(pixels: npt.NDArray[Any], source: object) -> int:
    """255 or 65535, as what the pixels reach needs."""
    low, high = (int(pixels.min()), int(pixels.max())) if pixels.size else (0, 0)
    if low < 0 or high > 65535:
        raise CalibrationError(
            f"{source}: holds {pixels.dtype} from {low} to {high}, no picture of 8 or 16 bits; "
            "pass floating-point numbers"
        )
    return 255 if high <= 255 else 65535
