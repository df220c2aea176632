"""Batches as a model takes them: one image at a time where it takes no more."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from convsurgeon.base.errors import CalibrationError, describe
from convsurgeon.calibration.dataset import Calibration, first, images_in, rest
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import outputs


def fed(model: nn.Module, data: Calibration, own: int = 1) -> Calibration:
    """The calibration data in batches that the model runs on.

    A model may be written for one image (`x.view(1, -1)`): one that fails on a batch, or makes one row of it, is fed
    image by image.

    Args:
        model: the original, left as it was.
        data: as it was read.
        own: the batch size of the model's example, which is tried where neither single images nor batches run.

    Raises:
        CalibrationError: it does not run on a single image of them either.
    """
    wide = max((*data.fitted, *data.held_back), key=images_in)
    if images_in(wide) == 0:
        return data
    one = first(wide, 1)
    try:
        rows = [out.shape for out in outputs(model, one)]
    except Exception as error:  # the user's own forward
        if _leading(model, wide) is not None:
            return data  # it wants batches, as batch norms that count do
        if own > 1 and _leading(model, first(wide, own)) is not None:
            return dataclasses.replace(data, fitted=_cut(data.fitted, own), held_back=_cut(data.held_back, own))
        raise CalibrationError(
            f"calibration: {type(model).__name__} does not run on an image of shape {one}: {describe(error)}; "
            "pass images that model(...) accepts"
        ) from error
    found = _leading(model, wide)
    grows = [shape for shape in rows if shape and shape[0] == 1]
    if found is not None and (not grows or images_in(wide) in found):
        return data
    return dataclasses.replace(data, fitted=_singly(data.fitted), held_back=_singly(data.held_back))


def _leading(model: nn.Module, batch: Example) -> set[int] | None:
    """First dimensions of what a model makes of a batch, None where it does not run."""
    try:
        return {out.shape[0] for out in outputs(model, batch) if out.dim()}
    except Exception:  # the user's own forward
        return None


def _singly(batches: Sequence[Example]) -> tuple[Example, ...]:
    """Every image by itself."""
    return _cut(batches, 1)


def _cut(batches: Sequence[Example], size: int) -> tuple[Example, ...]:
    """Batches of a size; what is left over of one is left out."""
    return tuple(
        first(rest(batch, start), size) for batch in batches for start in range(0, images_in(batch) - size + 1, size)
    )
