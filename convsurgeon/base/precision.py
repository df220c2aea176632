"""The number formats that a network runs and is timed in."""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["fp32", "int8"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
