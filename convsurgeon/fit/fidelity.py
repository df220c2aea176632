"""How near a converted model's outputs are to the original's, and what share of the outputs an error counts against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import answer
from convsurgeon.graph.state import undisturbed

EXPLAINED = 0.9
"""Share of the output that the input explains at least where a network is image to image."""
_LEAST = 1e-9


@dataclass(frozen=True)
class Fidelity:
    """Two models on the same inputs, over all floating-point outputs.

    Args:
        sqnr_db: 10 log10 of signal energy over error energy; inf where they agree to the bit.
        cosine: of the angle between the outputs.
        agreement: share of rows with the same largest entry; None unless the output is one (rows, classes) tensor.
        rows: how many there were.
        where: the outputs were compared, in words, if that is not the outputs themselves (see `graph.picking`).
    """

    sqnr_db: float
    cosine: float
    agreement: float | None
    rows: int
    where: str = ""


def fidelity(original: list[Tensor], converted: list[Tensor], where: str = "") -> Fidelity:
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
    agreement = float(torch.eq(original[0].argmax(1), converted[0].argmax(1)).double().mean()) if classifier else None
    if classifier and not math.isfinite(signal + other):
        agreement = math.nan
    rows = original[0].shape[0] if original and original[0].dim() else 0
    return Fidelity(sqnr_db(signal, error), cosine, agreement, rows, where)


def sqnr_db(signal: float, error: float) -> float:
    """Return 10 log10(signal / error): inf without error, -inf without signal, nan where either is not finite."""
    if not (math.isfinite(signal) and math.isfinite(error)):
        return math.nan
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 else -math.inf


def added_share(model: nn.Module, batches: Sequence[Example]) -> float:
    """Return the share of the output's variance that is not in the input; 1 for what is not image to image.

    A denoiser or super-resolution passes its input on: an error of a hundredth of its output may be all that it was
    made for. So its output is regressed on the input, channel by channel, and an error counts against the rest.
    """
    wrong = energy = 0.0
    with undisturbed(model):
        for batch in batches:
            output, inputs = answer(model, batch).judged, batch.tensors()
            if len(output) != 1 or len(inputs) != 1 or not _alike(inputs[0], output[0]):
                return 1.0
            left, whole = _remainder(inputs[0], output[0])
            wrong, energy = wrong + left, energy + whole
    share = wrong / energy if energy > 0 else 1.0
    return max(share, _LEAST) if share < 1 - EXPLAINED else 1.0


def _alike(image: Tensor, output: Tensor) -> bool:
    """Return whether the output is an image of the input's channels and size, or a whole number of times larger."""
    if image.dim() != 4 or output.dim() != 4 or image.shape[:2] != output.shape[:2]:
        return False
    return all(
        large >= small and large % small == 0 for small, large in zip(image.shape[2:], output.shape[2:], strict=True)
    )


def _remainder(image: Tensor, output: Tensor) -> tuple[float, float]:
    """Return the output's energy beside a line over the input, channel by channel, and its energy around the mean."""
    size = list(output.shape[2:])
    x = image.double() if size == list(image.shape[2:]) else F.interpolate(image.double(), size, mode="bicubic")
    x, y = (value.transpose(0, 1).flatten(1) for value in (x, output.double()))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    slope = (x * y).sum(1, keepdim=True) / (x * x).sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return float((y - slope * x).square().sum()), float(y.square().sum())
