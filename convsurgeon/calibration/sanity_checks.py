"""Calibration that notices when it is fed nonsense: what was seen, what was expected, and what would have been right.

Batch norms know the means and variances that a network was trained on (see `norms`). Where what they are fed is far
from that, the images are tried in other scales, and one that fits is named. Networks without batch norms leave the
example's values, and what is wrong whatever the network: one value everywhere, one image over and over, outputs that
do not depend on the image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from torch import Tensor

from convsurgeon.calibration.dataset import FEW, Calibration, first, images_in
from convsurgeon.calibration.norm_statistics import gauged, informed
from convsurgeon.calibration.value_range import common
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import float_tensors
from convsurgeon.graph.state import undisturbed

LOOKED_AT = 64
FAR = 0.5
"""Mean divergence of the batch norms above which images are not what a network was trained on."""

_MUCH = 3.0
"""Times less that divergence has to be in another scale for that scale to be named."""

_BEYOND = 8.0
"""Times the example's largest value that is no longer taken for the same scale."""

_CONSTANT = 0.1
_FLAT = 1e-4


def suspicions(seen: Capture, data: Calibration) -> Calibration:
    """The data, with a note for everything about them that does not look right."""
    sample = first(data.fitted[0], LOOKED_AT)
    with undisturbed(seen.model):
        notes = (*_number(data), *_plain(sample), *_values(seen, sample), *_answers(seen, sample))
    return dataclasses.replace(data, notes=(*data.notes, *notes))


def _number(data: Calibration) -> Iterator[str]:
    batches = {id(one): one for one in (*data.fitted, *data.held_back)}  # a single image is on both sides
    count = sum(map(images_in, batches.values()))
    if count < FEW:
        yield f"{count} image{'s are' if count > 1 else ' is'} few to calibrate on; a few hundred do best."


def _plain(sample: Example) -> Iterator[str]:
    """Images of one value, and one image many times."""
    for tensor in _images(sample):
        rows = tensor.flatten(1)
        constant = float((rows.amax(1) == rows.amin(1)).double().mean())
        if constant > _CONSTANT:
            yield (
                f"{100 * constant:.0f} % of the calibration images looked at hold one value everywhere (the first "
                f"{float(rows[0, 0]):g}); pictures were expected. See how they are read."
            )
        elif len(rows) > 1 and bool((rows == rows[:1]).all()):
            yield f"The first {len(rows)} calibration images are all the same one; different ones were expected."


def _values(seen: Capture, sample: Example) -> Iterator[str]:
    """Values that the batch norms, or the example, know otherwise."""
    norms = informed(seen.model)
    if not norms:
        yield from _beyond(seen.example, sample)
        return
    with gauged(norms) as gauge:

        def apart(example: Example) -> float:
            gauge.reset()
            example.run(seen.model)
            return float(gauge.mean())

        try:
            found = apart(sample)
            if found < FAR:
                return
            tried = {words: apart(other) for words, other in _otherwise(sample)}
        except Exception:  # the network takes no batch of that size: the fit will say so
            return
    low, high = _range(sample)
    words, least = min(tried.items(), key=lambda pair: pair[1], default=("", found))
    better = f"{words[:1].upper()}{words[1:]} they would be {least:.2f} apart."
    yield (
        f"The calibration images, values from {low:.4g} to {high:.4g}, are not what the network's {len(norms)} batch "
        f"norms know: means and variances are {found:.2f} apart, below {FAR:g} was expected. "
        + (better if least * _MUCH < found else "See how the images are read.")
    )


def _otherwise(sample: Example) -> Iterator[tuple[str, Example]]:
    """The images in other scales that are often meant, with words for what would have to be done."""
    if len(_images(sample)) != 1:
        return
    (tensor,) = _images(sample)
    channels = tensor.shape[1]
    ways = [("divided by 255", 1 / 255), ("divided by 65535", 1 / 65535), ("times 255", 255.0), ("times 257", 257.0)]
    for words, factor in ways:
        yield words, sample.map(lambda one, factor=factor: one * factor)  # type: ignore[misc]
        if factor <= 1:
            for scale in common(channels)[1:]:
                scaled = scale.apply((tensor * factor).float().cpu()).to(tensor)
                yield f"{words} and in {scale.words}", sample.map(lambda _, scaled=scaled: scaled)  # type: ignore[misc]
    for scale in common(channels)[1:]:
        scaled = scale.apply(tensor.float().cpu()).to(tensor)
        yield f"in {scale.words}", sample.map(lambda _, scaled=scaled: scaled)  # type: ignore[misc]
    if channels == 3:
        yield "with the channels in the other order (RGB for BGR)", sample.map(lambda one: one.flip(1))


def _beyond(example: Example, sample: Example) -> Iterator[str]:
    for known, found in zip(_images(example), _images(sample), strict=False):
        largest, reached = (float(one.abs().max()) for one in (known, found))
        if reached > _BEYOND * max(largest, 1e-3) and largest > 0:
            yield (
                f"The calibration images reach {reached:.4g}, the example {largest:.4g}: one of them is in another "
                "scale. Divide the images, or pass a real one as the example."
            )


def _answers(seen: Capture, sample: Example) -> Iterator[str]:
    """Whether the network tells these images apart."""
    count = images_in(sample)
    if count < 2:
        return
    try:
        outputs = float_tensors(sample.run(seen.model))
    except Exception:
        return
    rows = [one.float().flatten(1) for one in outputs if one.dim() > 1 and len(one) == count]
    if rows and all(_spread(one) < _FLAT for one in rows):
        yield (
            f"The network gives the same output for all of {count} calibration images, so nothing can be fitted or "
            "judged by them; different answers were expected. See how they are read."
        )


def _spread(rows: Tensor) -> float:
    """How far outputs are from their mean, relative to their size."""
    size = float(rows.square().mean())
    return float((rows - rows.mean(0)).square().mean()) / size if size > 0 else 0.0


def _range(sample: Example) -> tuple[float, float]:
    tensors = _images(sample)
    return min(float(one.min()) for one in tensors), max(float(one.max()) for one in tensors)


def _images(example: Example) -> list[Tensor]:
    return [tensor for tensor in example.tensors() if tensor.is_floating_point() and tensor.dim() == 4]
