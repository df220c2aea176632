"""Notes on calibration images that look wrong: what was found, what was expected, and what would have been right.

Batch norms hold the means and variances that a network was trained on. Where the images are far from them, other
normalisations are tried, and one that fits is named. Without batch norms the example's values are compared. Images of
one value, equal images, and outputs that do not depend on the image are noted for every network.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

from torch import Tensor

from convsurgeon.base.errors import describe
from convsurgeon.calibration.dataset import Calibration, first_images, images_in
from convsurgeon.calibration.normalisation import common_normalisations, norm_divergence, trained_norms
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import outputs
from convsurgeon.graph.state import undisturbed

_LOG = logging.getLogger(__name__)
_FEW = 64
_LOOKED_AT = 64
_FAR = 0.5
"""Mean divergence of the batch norms above which images are not what a network was trained on."""
_BETTER = 3.0
"""How many times smaller that divergence has to be in other numbers for those to be named."""
_BEYOND = 8.0
"""Multiple of the example's largest value that counts as another scale."""
_CONSTANT = 0.1
_FLAT = 1e-4


def check_images(seen: Capture, data: Calibration) -> Calibration:
    """Return the set with a note on everything that does not look right."""
    sample = first_images(data.fitted[0], _LOOKED_AT)
    batches = {id(one): one for one in (*data.fitted, *data.held_back)}  # a single image is on both sides
    count = sum(map(images_in, batches.values()))
    notes: list[str] = []
    if count < _FEW:
        notes += [f"{count} image{'s are' if count > 1 else ' is'} few to calibrate on; a few hundred do best."]
    notes += _check_variety(sample)
    with undisturbed(seen.model):
        try:
            notes += [*_check_values(seen, sample), *_check_outputs(seen, sample)]
        except Exception as error:  # a batch of a size that the network does not take: the fit says so
            _LOG.info("calibration images are not compared with the network: %s", describe(error))
    return dataclasses.replace(data, notes=(*data.notes, *notes))


def _check_variety(sample: Example) -> Iterator[str]:
    for tensor in _images(sample):
        rows = tensor.flatten(1)
        constant = float((rows.amax(1) == rows.amin(1)).double().mean())
        if constant > _CONSTANT:
            yield (
                f"{100 * constant:.0f} % of the calibration images looked at hold one value everywhere (the first "
                f"{float(rows[0, 0]):g}); pictures were expected. Check how they are read."
            )
        elif len(rows) > 1 and bool((rows == rows[:1]).all()):
            yield f"The first {len(rows)} calibration images are all the same one; different ones were expected."


def _check_values(seen: Capture, sample: Example) -> Iterator[str]:
    norms = trained_norms(seen.model)
    if not norms:
        yield from _compare_with_example(seen.example, sample)
        return
    found = float(norm_divergence(seen.model, norms, sample))
    if found < _FAR:
        return
    hint, least = "Check how the images are read.", found / _BETTER
    for words, other in _other_values(sample):
        divergence = float(norm_divergence(seen.model, norms, other))
        if divergence < least:
            hint, least = f"{words[:1].upper()}{words[1:]} it would be {divergence:.2f}.", divergence
    images = _images(sample)
    low, high = min(float(one.min()) for one in images), max(float(one.max()) for one in images)
    yield (
        f"The calibration images, values from {low:.4g} to {high:.4g}, are not what the network's {len(norms)} batch "
        f"norms were trained on: the divergence is {found:.2f}, below {_FAR:g} was expected. {hint}"
    )


def _other_values(sample: Example) -> Iterator[tuple[str, Example]]:
    """Yield the images in other numbers that are often meant, with words for what would have to be done."""
    images = _images(sample)
    if len(images) != 1:
        return
    (tensor,) = images
    scales = common_normalisations(tensor.shape[1])[1:]
    ways = {"": 1.0, "divided by 255": 1 / 255, "divided by 65535": 1 / 65535, "times 255": 255.0, "times 257": 257.0}
    for words, factor in ways.items():
        if words:
            yield words, sample.with_tensors([tensor * factor])
        for scale in scales if factor <= 1 else ():
            scaled = scale.apply((tensor * factor).float().cpu()).to(tensor)
            yield f"{words} and in {scale.name}" if words else f"in {scale.name}", sample.with_tensors([scaled])
    if tensor.shape[1] == 3:
        yield "with the channels in the other order (RGB for BGR)", sample.with_tensors([tensor.flip(1)])


def _compare_with_example(example: Example, sample: Example) -> Iterator[str]:
    for expected, found in zip(_images(example), _images(sample), strict=False):
        largest, reached = (float(one.abs().max()) for one in (expected, found))
        if reached > _BEYOND * max(largest, 1e-3) and largest > 0:
            yield (
                f"The calibration images reach {reached:.4g}, the example {largest:.4g}: one of them is in another "
                "scale. Divide the images, or pass a real one as the example."
            )


def _check_outputs(seen: Capture, sample: Example) -> Iterator[str]:
    count = images_in(sample)
    if count < 2:
        return
    found = outputs(seen.model, sample)
    rows = [one.float().flatten(1) for one in found if one.dim() > 1 and len(one) == count]
    if rows and all(_spread(one) < _FLAT for one in rows):
        yield (
            f"The network gives the same output for all of {count} calibration images, so that nothing can be fitted "
            "or judged by them; different outputs were expected. Check how they are read."
        )


def _spread(rows: Tensor) -> float:
    """Return the distance of outputs from their mean, relative to their size."""
    size = float(rows.square().mean())
    return float((rows - rows.mean(0)).square().mean()) / size if size > 0 else 0.0


def _images(example: Example) -> list[Tensor]:
    return [tensor for tensor in example.tensors() if tensor.is_floating_point() and tensor.dim() == 4]
