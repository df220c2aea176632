"""Images that are in other numbers or of another size than the network takes, refused by their first batch.

Batch norms hold the mean and variance of every channel that the network was trained on. Where the images are far from
them and would be near in other numbers, the normalisation that leads there is named. Without batch norms the example's
values are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import CalibrationError
from convsurgeon.calibration.dataset import first_batches, images_in, picture_channels
from convsurgeon.calibration.images import Images
from convsurgeon.calibration.normalisation import (
    Normalisation,
    common_normalisations,
    norm_coverage,
    normalisation,
    norms_in_use,
)
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.state import undisturbed

FAR = 0.1
"""Mean divergence of the batch norms below which images are taken to be in the right numbers."""
BETTER, NEAR = 4.0, 0.2
"""Other numbers are named where the divergence is so many times smaller in them, and at most this."""
BEYOND = 16.0
"""Multiple of the example's largest value, either way, that is another scale."""
BELOW = 0.05
"""Share of the images' values below zero from which on they are in other numbers than an example without any."""
LARGER = 4.0
"""Multiple of the example's pixels that tensors may have."""
PROBES, _PROBE_MACS = 16, 4e9
"""Images to ask the network with in each of the numbers: at most so many, or so many multiply-accumulates."""

_OUTSIDE, _NARROWEST = 0.1, 0.4
"""Images are pixels in [0, 1] if they reach no farther outside, and so much of it at least."""
_TRUST = "or say trusted=True (--trusted) to go on"


def check_size(seen: Capture, batch: Example, images: Images) -> None:
    """Refuse tensors with many more pixels than the example, which would take as many times longer.

    Raises:
        CalibrationError: They have.
    """
    channels = picture_channels(seen.example)
    if images.trusted or images.size is not None or not channels:
        return
    (given,), (like,) = batch.tensors(), seen.example.tensors()
    if given[0].numel() > LARGER * like[0].numel():
        height, width = like.shape[2:] if like.shape[1] == channels else like.shape[1:3]
        raise CalibrationError(
            f"calibration: the images are {_sides(given)}, the example {_sides(like)}; pass cs.Images(..., "
            f"size=({height}, {width})), an example as large as the images, {_TRUST}"
        )


def check_numbers(seen: Capture, batches: Sequence[Example], images: Images, *, whole: bool) -> None:
    """Refuse images in other numbers than the network was trained on, with what would be right.

    Args:
        seen: The network.
        batches: A few images, as the network would be given them.
        images: Where they come from.
        whole: Whether they came as whole numbers, which `Images` divides where it prepares them.

    Raises:
        CalibrationError: They are.
    """
    (like,) = seen.example.tensors() if picture_channels(seen.example) else [None]
    if images.trusted or like is None or not like.is_floating_point():
        return
    given = torch.cat([one.tensors()[0] for one in batches])
    norms = norms_in_use(seen)
    if bool((given == given.flatten()[0]).all()):
        return
    if not norms:
        _compare_with_example(like, given)
        return
    each = seen.cost.macs / max(1, images_in(seen.example)) * given[0].numel() / like[0].numel()
    few = first_batches(batches, max(2, min(PROBES, int(_PROBE_MACS / max(1.0, each)))))
    with undisturbed(seen.model):
        found = _nearest(seen.model, norms, few)
    if found is not None:
        raise CalibrationError(
            f"calibration: the images, values from {float(given.min()):.4g} to {float(given.max()):.4g}, are not in "
            f"the numbers that the network was trained on; of the usual ones {found.name} fits best: pass "
            f"{_restated(found, images, whole)}, or the numbers of its own training, {_TRUST}"
        )


def _sides(images: Tensor) -> str:
    return "x".join(map(str, images.shape[1:]))


def _nearest(model: nn.Module, norms: list[nn.Module], batches: Sequence[Example]) -> Normalisation | None:
    """Return what takes the images to numbers in which the norms know them much better; None where nothing does."""

    def divergence(way: Normalisation | None) -> float:
        given = batches if way is None else [one.map(lambda x: way.apply(x.float().cpu()).to(x)) for one in batches]
        return norm_coverage(model, norms, given)[0]

    found = divergence(None)
    if found < FAR:
        return None
    known = {way: divergence(way) for way in _ways(torch.cat([one.tensors()[0] for one in batches]))}
    best = min(known, key=lambda way: known[way], default=None)
    return best if best is not None and known[best] < min(NEAR, found / BETTER) else None


def _ways(given: Tensor) -> Iterator[Normalisation]:
    """Yield how images would be brought from the numbers they may be in to others in common use."""
    channels = given.shape[1]
    common = common_normalisations(channels)
    scaled = [Normalisation("", (0.0,) * channels, (std,) * channels) for std in (255.0, 1 / 65535)]
    sources = [*common, *scaled]  # divided by 255 twice, 16 bits
    for source in sources:
        pixels = source.undo(given.float().cpu())
        low, high = float(pixels.min()), float(pixels.max())
        if low < -_OUTSIDE or high > 1 + _OUTSIDE or high - low < _NARROWEST:
            continue
        for target in common:
            mean = [(m - s) / d for m, s, d in zip(target.mean, source.mean, source.std, strict=True)]
            std = [a / b for a, b in zip(target.std, source.std, strict=True)]
            if max(map(abs, mean)) > 1e-6 or max(abs(one - 1) for one in std) > 1e-6:
                yield Normalisation(target.name, tuple(mean), tuple(std))


def _restated(way: Normalisation, images: Images, whole: bool) -> str:
    """Return the `Images` that gives the network its numbers, as code."""
    channels = len(way.mean)
    if whole and not images.is_prepared:
        own = common_normalisations(channels)[2]  # bytes as they are
    else:
        own = normalisation(images.mean, images.std, channels)
    mean = [m + s * one for m, s, one in zip(own.mean, own.std, way.mean, strict=True)]
    std = [s * one for s, one in zip(own.std, way.std, strict=True)]
    options = f"--mean {_as_words(mean)} --std {_as_words(std)}"
    return f"cs.Images(..., mean={_as_code(mean)}, std={_as_code(std)}) ({options})"


def _as_code(values: list[float]) -> str:
    short = [f"{value:.4g}" for value in values]
    return short[0] if len(set(short)) == 1 else f"({', '.join(short)})"


def _as_words(values: list[float]) -> str:
    return _as_code(values).strip("()").replace(",", "")


def _compare_with_example(like: Tensor, given: Tensor) -> None:
    """Refuse images of another scale than the example's, or below zero where it is not, if that is an image."""
    if bool((like == like.flatten()[0]).all()):
        return
    (low, high), (least, most) = ([float(one) for one in images.detach().aminmax()] for images in (like, given))
    scale = max(abs(least), abs(most)) / max(abs(low), abs(high))
    if BEYOND**-1 < scale < BEYOND and (low < 0 or float((given < 0).float().mean()) < BELOW):
        return
    raise CalibrationError(
        f"calibration: the images hold values from {least:.4g} to {most:.4g}, the example from {low:.4g} to "
        f"{high:.4g}; pass cs.Images(..., mean=..., std=...) for what the network was trained on, one of its own "
        f"images as the example, {_TRUST}"
    )
