"""Batches as they run fastest: channels last, which convs on a CPU take up to twice as fast, and not too large.

A user's batch may be a whole data set: nothing is run on more images at once than their activations leave room for.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from convsurgeon.base.errors import describe
from convsurgeon.calibration.dataset import Calibration, first_images, images_in, select_images
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import outputs

BATCH_BYTES = 1 << 23
"""Activations of a batch that are alive at once, 8 MB: what fits into a processor's caches is twice as fast."""

_TWO_BYTES = 1 << 29
"""Activations of an example from which on two of them are not run at once."""
_TOGETHER = 16
"""Times as many images are run where a batch norm takes their mean."""
_ALIKE = 1e-4
_LOG = logging.getLogger(__name__)


def in_small_batches(seen: Capture, data: Calibration) -> Calibration:
    """Return the images in batches whose activations take no more than `BATCH_BYTES`, of two examples at least.

    Where the network runs on two it takes any number, and so the remainder of a batch. Of large ones, one.
    """
    own = images_in(seen.example)
    size = own * max(1 if seen.cost.peak_activation_bytes > _TWO_BYTES else 2, _most(seen) // own)
    return dataclasses.replace(
        data, fitted=_split(data.fitted, size, False), held_back=_split(data.held_back, size, False)
    )


def lay_out(seen: Capture, data: Calibration) -> Calibration:
    """Return the images channels last and in smaller batches; each only where the network computes the same of it."""
    if any(parameter.device.type != "cpu" for parameter in seen.model.parameters()):
        return data
    largest = max(data.fitted, key=images_in)
    size = min(images_in(largest), _most(seen))
    data = dataclasses.replace(data, together=min(images_in(largest), _TOGETHER * _most(seen)))
    few = first_images(largest, size)
    try:
        wanted = outputs(seen.model, few)
        if any(one.shape[:1] != (size,) for one in wanted):
            size = images_in(largest)
        if _compares(seen, few.map(_moved), wanted):
            return dataclasses.replace(
                data, fitted=_split(data.fitted, size, True), held_back=_split(data.held_back, size, True)
            )
    except Exception as error:  # the user's own forward, on fewer images
        _LOG.info("the model does not run on %d images: %s", size, describe(error))
        return data
    return dataclasses.replace(
        data, fitted=_split(data.fitted, size, False), held_back=_split(data.held_back, size, False)
    )


def _most(seen: Capture) -> int:
    """Return how many images run at once."""
    of_one = seen.cost.peak_activation_bytes / max(1, images_in(seen.example))
    return max(1, int(BATCH_BYTES / max(1.0, of_one)))


def _compares(seen: Capture, moved: Example, wanted: Sequence[Tensor]) -> bool:
    """Return whether the network gives the same of images that are channels last; a `view` may fail on them."""
    try:
        found = outputs(seen.model, moved)
    except Exception as error:  # likewise
        _LOG.info("the model does not run channels last: %s", describe(error))
        return False
    same = [one.shape for one in wanted] == [two.shape for two in found]
    return same and all(_apart(one, two) <= _ALIKE for one, two in zip(wanted, found, strict=True))


def _split(batches: Sequence[Example], size: int, moved: bool) -> tuple[Example, ...]:
    parts = []
    for batch in batches:
        for start in range(0, images_in(batch), size):
            whole = images_in(batch) <= size
            part = batch if whole else select_images(batch, slice(start, start + size))
            parts.append(part.map(_moved) if moved else part)
    return tuple(parts)


def _moved(tensor: Tensor) -> Tensor:
    """Return an image tensor channels last; of one channel, too, where `contiguous` leaves everything as it is."""
    if tensor.dim() != 4 or not tensor.is_floating_point():
        return tensor
    return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)


def _apart(one: Tensor, two: Tensor) -> float:
    """Return the largest difference over the largest value."""
    largest = float(one.abs().max()) if one.numel() else 0.0
    return float((one - two).abs().max()) / largest if largest else 0.0
