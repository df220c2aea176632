"""The type of a numpy array, of whatever shape and kind of number."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
