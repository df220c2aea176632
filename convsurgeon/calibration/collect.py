"""What `calibration=` may be, as a calibration set: the user's images, synthetic images, or none."""

from __future__ import annotations

import dataclasses
import inspect
import numbers
import sys
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from convsurgeon.base.errors import CalibrationError
from convsurgeon.base.progress import say
from convsurgeon.calibration.coverage import complete
from convsurgeon.calibration.dataset import Calibration, as_example, first_images, hold_back, images_in
from convsurgeon.calibration.first_batch import PROBES, check_numbers, check_size
from convsurgeon.calibration.images import Images
from convsurgeon.calibration.layout import Layout, find_layout, lay_out
from convsurgeon.calibration.normalisation import check_norms
from convsurgeon.calibration.synthetic import synthesise
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import check_output_sizes
from convsurgeon.onnxnet.network import OnnxNetwork

LIMIT = 1024
"""Images to calibrate on where the user names no limit."""
_MOST_SEED = 10**17


def as_images(calibration: object, limit: int = LIMIT) -> Images:
    """Return what a user passes, an `Images` or a source of one, as images; refuse at once what holds none.

    Raises:
        CalibrationError: It is of a type that holds no images, or a path that does not exist.
    """
    images = calibration if isinstance(calibration, Images) else Images(calibration)
    return images if images.limit is not None else dataclasses.replace(images, limit=limit)


def check_calibration(calibration: object, seed: object) -> None:
    """Refuse what no images can be read from, and no seed, before any work is done.

    Raises:
        CalibrationError: As `as_images`, or the seed is not one that torch's generators take.
    """
    if not isinstance(seed, numbers.Integral) or abs(int(seed)) >= _MOST_SEED:
        raise CalibrationError(f"seed={seed!r}: pass a whole number of up to 17 digits")
    if calibration is not False and not isinstance(calibration, Calibration):
        as_images(calibration)


def gather(
    seen: Capture, calibration: object, *, seed: int, progress: bool, most: int = sys.maxsize
) -> Calibration | None:
    """Return the calibration set for a captured network, laid out for it; None where there is to be none.

    Args:
        seen: The network.
        calibration: What `Images` takes as its source, or an `Images`; a `Calibration`, of which all are used; None
            for synthetic images; False for none.
        seed: Of synthetic images.
        progress: Whether to show a bar.
        most: Images that there is time for, whatever limit the user names.

    Raises:
        CalibrationError: The network cannot take the images or has no values, synthetic ones cannot be made, or the
            network's output has a size that depends on values, so that errors are not defined.
    """
    if calibration is False:
        return None
    on_meta = any(parameter.is_meta for parameter in seen.model.parameters())
    images = calibration if isinstance(calibration, Calibration) else as_images(calibration)
    if isinstance(images, Images):
        images = dataclasses.replace(images, limit=min(images.most, most))
    none_given = isinstance(images, Images) and images.source is None
    if none_given and (on_meta or all(site.obstacle for site in seen.sites)):
        return None  # no values to fit, or no site that may be changed
    if on_meta:
        raise CalibrationError("calibration: the model is on the meta device and has no values; load its weights first")
    if not images_in(seen.example):
        raise CalibrationError("example: it holds no images; pass at least one, or calibration=False")
    check_norms(seen.model)
    check_output_sizes(seen.model, seen.example)
    if isinstance(images, Calibration):
        return lay_out(seen, images)
    if none_given:
        made = synthesise(seen, images.most, seed=seed, mean=images.mean, std=images.std, progress=progress)
        return lay_out(seen, made)
    if words := images.describe(seen.example):
        say(f"looking at {words}", show=progress)
    layout: list[Layout] = []

    def check(batch: Example, whole: bool) -> None:
        check_size(seen, batch, images)
        layout.append(find_layout(seen, batch))
        few = Calibration((first_images(batch, max(images_in(seen.example), PROBES)),), ())
        check_numbers(seen, layout[0].of(few).fitted, images, whole=whole)

    given = read(images, seen.example, input_names(seen.model, seen.example), check=check)
    data = lay_out(seen, given, layout[0])
    full = complete(seen, data, trusted=images.trusted, limit=images.most, seed=seed, progress=progress)
    return lay_out(seen, full, layout[0])


def read(
    images: object,
    like: Example,
    names: Sequence[str] = (),
    limit: int = LIMIT,
    check: Callable[[Example, bool], None] | None = None,
) -> Calibration:
    """Return a user's images, as `gather` takes them, as a set; batches may differ from `like` in size only.

    Args:
        images: The images.
        like: The example.
        names: Of the network's inputs.
        limit: Most images to use where the user names no limit.
        check: Called with the first batch, and whether it came as whole numbers, before others are read.

    Raises:
        CalibrationError: There are no images, or the model cannot take one, or one is not finite.
    """
    source = as_images(images, limit)
    taken: list[Example] = []
    count = 0
    for index, batch in enumerate(source.batches(like, names)):
        example = as_example(batch, like, index)
        if not images_in(example):
            continue
        if check is not None and not taken:
            check(example, isinstance(batch, Tensor) and not batch.is_floating_point())
        room = source.most - count
        taken.append(example if images_in(example) <= room else first_images(example, room))
        count += images_in(taken[-1])
        if count >= source.most:
            break
    if not count:
        raise CalibrationError("calibration: it holds no images; pass at least one batch, a few hundred images do best")
    return hold_back(taken, notes=source.notes)


def input_names(model: nn.Module, example: Example) -> list[str]:
    """Return the names of a model's inputs in the order of `forward`."""
    if isinstance(model, OnnxNetwork):
        return list(model.input_names)
    return list(inspect.signature(model.forward).parameters)[: len(example.tensors())]
