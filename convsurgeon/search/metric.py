"""A user's own measure of a network, asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from convsurgeon.base.arrays import Array
from convsurgeon.base.errors import BudgetError
from convsurgeon.graph.state import undisturbed

Metric = Callable[[nn.Module], Any]
"""Gives a number, or one for each image."""


def measure(metric: Metric, model: nn.Module, images: dict[float, Array] | None = None) -> float:
    """Return the user's metric of a model: the number that it gives, or the mean of one for each image.

    Args:
        metric: to ask.
        model: what it is asked about.
        images: where to put the values of each image, by their mean.

    Raises:
        BudgetError: it is not a finite number.
    """
    name = getattr(metric, "__name__", "metric")
    with undisturbed(model):
        value = metric(model)
    size = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    shown = repr(value) if isinstance(value, str) else f"a {type(value).__name__}{size}"
    try:
        if value is None:
            raise TypeError
        each = np.asarray(value.detach().cpu().double().numpy() if isinstance(value, Tensor) else value)
        if each.dtype.kind not in "biufO" or each.size == 0 or (each.ndim > 1 and each.size > 1):
            raise TypeError
        each = each.astype(np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise BudgetError(f"{name}: gives {shown}; a metric gives a number, or one for each image") from error
    number = float(each.mean())
    if not math.isfinite(number):
        raise BudgetError(f"{name}: gives {value!r}; a metric gives a finite number")
    if images is not None and each.size > 1:
        images[number] = each
    return number
