"""Batches as a network runs fastest: channels last, which convs on a CPU take up to twice as fast, and not too large.

A user's batch may be a whole data set: nothing is run on more images at once than their activations leave room for. A
network may be written for one image (`x.view(1, -1)`): it fails on a batch, or makes one row of it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convsurgeon.base.errors import CalibrationError, describe
from convsurgeon.calibration.dataset import Calibration, first_images, images_in, select_images, split_batches
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import outputs

BATCH_BYTES = 1 << 23
"""Activations of a batch that are alive at once, 8 MB: what fits into a processor's caches is twice as fast."""

_TOGETHER = 16
"""Times the room for images where a batch norm takes their mean."""
_ALIKE = 1e-4
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How a network runs on batches.

    Args:
        size: images of a batch.
        exact: whether it takes no other number, so that a remainder is left out.
        channels_last: whether it computes the same of images that lie so in memory.
        together: most images that are run at once, where a batch norm takes their mean.
        found_on: images of the batch by which that is known.
    """

    size: int
    exact: bool
    channels_last: bool
    together: int
    found_on: int

    def of(self, data: Calibration) -> Calibration:
        """Return the images in such batches; a batch that is in both parts still is."""
        parts = {id(batch): self._split(batch) for batch in (*data.fitted, *data.held_back)}
        fitted, held_back = (
            tuple(part for batch in batches for part in parts[id(batch)]) for batches in (data.fitted, data.held_back)
        )
        return dataclasses.replace(data, fitted=fitted, held_back=held_back, together=self.together)

    def _split(self, batch: Example) -> list[Example]:
        count = images_in(batch)
        if self.exact:
            parts = list(split_batches([batch], self.size))
        elif count <= self.size:
            parts = [batch]
        else:
            parts = [select_images(batch, slice(start, start + self.size)) for start in range(0, count, self.size)]
        return [part.map(_moved) for part in parts] if self.channels_last else parts


def lay_out(seen: Capture, data: Calibration, known: Layout | None = None) -> Calibration:
    """Return the images in the layout that is known, unless that is of a smaller batch than their largest."""
    largest = max((*data.fitted, *data.held_back), key=images_in)
    if known is None or (not known.exact and images_in(largest) > known.found_on):
        known = find_layout(seen, largest)
    return known.of(data)


def find_layout(seen: Capture, batch: Example) -> Layout:
    """Return how a network runs on a batch: on as many images as have room, as many as its example has, or one.

    Raises:
        CalibrationError: it runs on none of them.
    """
    own, most = images_in(seen.example), min(_most(seen, BATCH_BYTES), images_in(batch))
    most -= most == own > 1  # another number than its own, to see whether it takes any
    for size in dict.fromkeys((most, own, 1)):
        few = first_images(batch, size)
        try:
            found = outputs(seen.model, few)
        except Exception as error:  # the user's own forward
            _LOG.info("the model does not run on %d images: %s", size, describe(error))
            failure = error
            continue
        if size == 1 or any(one.dim() and one.shape[0] % size == 0 for one in found):
            exact = size != most
            together = size if exact else _most(seen, _TOGETHER * BATCH_BYTES)
            return Layout(size, exact, _takes_channels_last(seen, few, found), together, images_in(batch))
    raise CalibrationError(
        f"calibration: {type(seen.model).__name__} does not run on an image of shape {few}: {describe(failure)}; "
        "pass images that model(...) accepts"
    ) from failure


def _most(seen: Capture, size_bytes: float) -> int:
    """Return how many images' activations have so much room, one at least."""
    of_one = seen.cost.peak_activation_bytes / max(1, images_in(seen.example))
    return max(1, int(size_bytes / max(1.0, of_one)))


def _takes_channels_last(seen: Capture, few: Example, wanted: Sequence[Tensor]) -> bool:
    """Return whether the network gives the same of images that are channels last; a `view` may fail on them."""
    if any(parameter.device.type != "cpu" for parameter in seen.model.parameters()):
        return False
    try:
        found = outputs(seen.model, few.map(_moved))
    except Exception as error:  # likewise
        _LOG.info("the model does not run channels last: %s", describe(error))
        return False
    same = [one.shape for one in wanted] == [two.shape for two in found]
    return same and all(_apart(one, two) <= _ALIKE for one, two in zip(wanted, found, strict=True))


def _moved(tensor: Tensor) -> Tensor:
    """Return an image tensor channels last; of one channel, too, where `contiguous` leaves everything as it is."""
    if tensor.dim() != 4 or not tensor.is_floating_point():
        return tensor
    bare = torch.empty_like(tensor, memory_format=torch.channels_last, device="meta")
    return tensor if bare.stride() == tensor.stride() else torch.empty_like(bare, device=tensor.device).copy_(tensor)


def _apart(one: Tensor, two: Tensor) -> float:
    """Return the largest difference over the largest value."""
    largest = float(one.abs().max()) if one.numel() else 0.0
    return float((one - two).abs().max()) / largest if largest else 0.0
