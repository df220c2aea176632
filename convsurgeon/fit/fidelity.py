"""How near a converted model's outputs are to the original's, and what share of the outputs an error counts against."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from convsurgeon.graph.decisions import Decisions, interval
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import Answer, pair_outputs

DECIDES = 0.5
"""Share of the output that is not in the input, above which an output of the input's channels may be of decisions."""
_LEAST = 1e-9


@dataclass(frozen=True)
class Fidelity:
    """Two models on the same inputs, over all that they are judged at.

    Args:
        sqnr_db: 10 log10 of signal energy over error energy; inf where they agree to the bit.
        cosine: of the angle between the outputs.
        agreement: share of rows with the same decision; None unless there is one for each (see `graph.decisions`).
        rows: how many there were.
        where: the outputs were compared, in words, if that is not the outputs themselves (see `graph.picking`).
        overlap: of decisions at every place of a map, intersection over union; None without maps.
        added_db: energy of what an image-to-image network adds to its input over error energy; None of others.
    """

    sqnr_db: float
    cosine: float
    agreement: float | None
    rows: int
    where: str = ""
    overlap: float | None = None
    added_db: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the agreement."""
        return None if self.agreement is None else interval(self.agreement, self.rows)


def fidelity(
    original: list[Tensor], converted: list[Tensor], where: str = "", images: Sequence[Tensor] = ()
) -> Fidelity:
    """Compare two lists of outputs of equal shapes, in float64; nan where a value is not finite.

    Args:
        original: what the original is judged at.
        converted: what the converted model is judged at.
        where: that is, if it is not the outputs.
        images: that went in.
    """
    signal = error = product = other = 0.0
    decisions = Decisions()
    decisions.add(original, converted)
    for one, two in zip(original, converted, strict=True):
        a, b = one.double().flatten(), two.double().flatten()
        signal += float(a @ a)
        other += float(b @ b)
        product += float(a @ b)
        error += float((a - b).square().sum())
    finite = math.isfinite(signal + other)
    cosine = product / math.sqrt(signal * other) if signal > 0 and other > 0 else float(signal == other)
    share, energy = _share([(list(images), original)])
    return Fidelity(
        sqnr_db(signal, error),
        cosine if finite else math.nan,
        decisions.agreement if finite or decisions.agreement is None else math.nan,
        original[0].shape[0] if original and original[0].dim() else 0,
        where,
        overlap=decisions.overlap if finite and share > DECIDES else None,
        added_db=sqnr_db(share * energy, error) if share <= DECIDES else None,
    )


def compare_answers(
    batches: Sequence[Example], wanted: Sequence[Answer], found: Sequence[Sequence[Tensor]]
) -> Fidelity:
    """Return the fidelity of a converted model on images of one size.

    Args:
        batches: the images.
        wanted: what the original gives for them.
        found: what the converted model is judged at.

    Raises:
        CalibrationError: the two have outputs of different sizes.
    """
    pairs = [pair_outputs(one.judged, two) for one, two in zip(wanted, found, strict=True)]
    both = list(zip(*pairs, strict=True))
    original, converted = (
        [torch.cat([torch.atleast_1d(pair[side]) for pair in column]) for column in both] for side in (0, 1)
    )
    if not all(bool(tensor.isfinite().all()) for tensor in original):
        text = "the original's own output holds NaN or infinity; look at its weights and at the example"
        warnings.warn(f"fidelity: {text}", stacklevel=5)
    images = [torch.cat(column) for column in zip(*(batch.tensors() for batch in batches), strict=True)]
    return fidelity(original, converted, wanted[0].where, images)


def sqnr_db(signal: float, error: float) -> float:
    """Return 10 log10(signal / error): inf without error, -inf without signal, nan where either is not finite."""
    if not (math.isfinite(signal) and math.isfinite(error)):
        return math.nan
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 else -math.inf


def added_share(batches: Sequence[Example], answers: Sequence[Answer]) -> float:
    """Return the share of the output's variance that is not in the input; 1 for what is not image to image.

    A denoiser or super-resolution passes its input on: an error of a hundredth of its output may be all that it was
    made for. So its output is regressed on the input, channel by channel, and an error counts against the rest.
    """
    return _share((batch.tensors(), one.judged) for batch, one in zip(batches, answers, strict=True))[0]


def _share(pairs: Iterable[tuple[list[Tensor], list[Tensor]]]) -> tuple[float, float]:
    """Return the share of the outputs that is not in the inputs, and the energy of the outputs around their mean."""
    wrong = energy = 0.0
    for inputs, output in pairs:
        if len(output) != 1 or len(inputs) != 1 or not _alike(inputs[0], output[0]):
            return 1.0, 0.0
        left, whole = _remainder(inputs[0], output[0])
        wrong, energy = wrong + left, energy + whole
    return max(min(1.0, wrong / energy), _LEAST) if energy > 0 else 1.0, energy


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
