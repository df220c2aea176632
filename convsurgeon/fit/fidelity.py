"""Fidelity: how near a converted model's outputs are to the original's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fidelity:
    """Two models on the same inputs, over all floating-point outputs.

    Args:
        sqnr_db: 10 log10 of signal energy over error energy; inf where they agree to the bit.
        cosine: of the angle between the outputs.
        agreement: share of rows with the same largest entry; None unless the output is one (rows, classes) tensor.
        rows: how many there were.
    """

    sqnr_db: float
    cosine: float
    agreement: float | None
    rows: int


def fidelity(original: list[Tensor], converted: list[Tensor]) -> Fidelity:
    """Compare two lists of outputs of equal shapes, in float64; nan where a value is not finite."""
    signal = error = product = other = 0.0
    for one, two in zip(original, converted, strict=True):
        a, b = one.double().flatten(), two.double().flatten()
        signal += float(a @ a)
        other += float(b @ b)
        product += float(a @ b)
        error += float((a - b).square().sum())
    cosine = product / math.sqrt(signal * other) if signal > 0 and other > 0 else float(signal == other)
    cosine = cosine if math.isfinite(signal + other) else math.nan
    classifier = len(original) == 1 and original[0].dim() == 2 and original[0].shape[1] >= 2
    agreement = _agreement(original[0], converted[0]) if classifier else None
    rows = original[0].shape[0] if original and original[0].dim() else 0
    return Fidelity(sqnr_db(signal, error), cosine, agreement, rows)


def sqnr_db(signal: float, error: float) -> float:
    """Return 10 log10(signal / error): inf without error, -inf without signal, nan where either is not finite."""
    if not (math.isfinite(signal) and math.isfinite(error)):
        return math.nan
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 else -math.inf


def _agreement(one: Tensor, two: Tensor) -> float:
    """Return the share of rows with the same largest entry; nan where a value is not finite."""
    if not (bool(one.isfinite().all()) and bool(two.isfinite().all())):
        return math.nan
    return float(torch.eq(one.argmax(1), two.argmax(1)).double().mean())
