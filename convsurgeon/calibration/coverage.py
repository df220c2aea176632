"""How much of what a network was made for its calibration images show, and what is done where too little.

Weights fitted to images that leave channels idle are free to forget what those channels are for, and held-back images
of the same kind do not tell. Batch norms hold what every channel was: where the images are far from that, synthetic
images that the norms accept join them. Without batch norms nothing says what is missing: better images are asked for.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import CalibrationError, describe
from convsurgeon.calibration.dataset import BATCH, Calibration, first_batches, images_in, join_batches, select_images
from convsurgeon.calibration.dead_leaves import draw_images
from convsurgeon.calibration.image_files import spread
from convsurgeon.calibration.normalisation import IDLE, norm_coverage, norms_in_use
from convsurgeon.calibration.restoration import enlargement
from convsurgeon.calibration.synthetic import synthesise
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import outputs
from convsurgeon.graph.state import undisturbed

FAR = 0.2
"""Mean divergence of the batch norms above which images are not what a network was trained on."""
REFUSED = 0.5
"""The same above which they are refused where no images can be synthesised that the norms accept."""
FLAT = 1e-8
"""Variance of the outputs between images, as a share of their square, below which they are one answer."""
CONSTANT = 0.5
"""Share of images without any contrast above which they are not pictures."""
JOINED = 128
"""Synthetic images that join the user's at most."""
MOSTLY = 0.5
"""Share of one class among drawn images above which one class for all of a user's tells nothing of them."""
FEW = 32
"""Images below which they are joined, since nothing can be judged by them."""
_BEST = 64
_LOOKED_AT = 64
_LOG = logging.getLogger(__name__)


def complete(seen: Capture, data: Calibration, *, trusted: bool, limit: int, seed: int, progress: bool) -> Calibration:
    """Return a user's calibration set, joined by synthetic images where it leaves idle what the network is for.

    Raises:
        CalibrationError: It does, and images cannot be synthesised that the network knows.
    """
    batches = [*{id(one): one for one in (*data.fitted, *data.held_back)}.values()]
    count = sum(map(images_in, batches))
    norms = norms_in_use(seen)
    with undisturbed(seen.model):
        fault, mild = _fault(seen, _sample(batches))
    if not fault and count < FEW and norms and not trusted:
        fault = f"there {'are' if count > 1 else 'is'} {count}"
    if not fault:
        few = f"{count} image{'s are' if count > 1 else ' is'} few to calibrate on; a few hundred do best."
        return dataclasses.replace(data, notes=(*data.notes, few)) if count < _BEST else data
    if trusted:
        return dataclasses.replace(data, warning=_warned(f"The calibration images are used as they are: {fault}."))
    hint = "pass images like those that it was trained on, or cs.Images(..., trusted=True) (--trusted) to go on"
    if not norms:
        raise CalibrationError(f"calibration: {fault}; {hint}")
    made, why = _accepted(seen, norms, min(limit, JOINED), seed, progress)
    if made is None:
        if mild:
            return dataclasses.replace(data, warning=_warned(f"The calibration images are used as they are: {fault}."))
        raise CalibrationError(f"calibration: {fault}, and {why}; {hint}")
    count = sum(map(images_in, (*made.fitted, *made.held_back)))
    words = (
        f"The calibration images do not show what the network was trained on: {fault}. {count} synthetic images "
        f"that its batch norms accept joined them; a few hundred real ones are the safer choice."
    )
    return dataclasses.replace(_mix(data, made, seed), warning=_warned(words))


def _accepted(
    seen: Capture, norms: list[nn.Module], count: int, seed: int, progress: bool
) -> tuple[Calibration | None, str]:
    """Return synthetic images that the norms accept; or None, and why there are none."""
    try:
        made = synthesise(seen, count, seed=seed, progress=progress)
    except CalibrationError as error:
        return None, f"images cannot be synthesised ({error})"
    with undisturbed(seen.model):
        divergence, _ = norm_coverage(seen.model, norms, _sample(made.fitted))
    if divergence <= FAR:
        return made, ""
    return None, (
        f"no images could be synthesised that its batch norms accept ({divergence:.2f}, below {FAR:g} was expected)"
    )


def _warned(words: str) -> str:
    warnings.warn(words, stacklevel=2)
    return words


def _sample(batches: Sequence[Example]) -> list[Example]:
    """Return about 64 images of all batches."""
    each = -(-_LOOKED_AT // max(1, images_in(batches[0])))
    return first_batches([batches[index] for index in spread(len(batches), each)], _LOOKED_AT)


def _fault(seen: Capture, sample: list[Example]) -> tuple[str, bool]:
    """Return what is wrong with images, in a clause, and whether it is mild; empty where nothing is known to be."""
    count = sum(map(images_in, sample))
    images = [tensor for one in sample for tensor in one.tensors() if tensor.dim() == 4]
    rows = [(torch.view_as_real(one) if one.is_complex() else one).flatten(2) for one in images]
    plain = sum(int((one.amax(2) == one.amin(2)).all(1).sum()) for one in rows)
    constant = plain / max(1, sum(map(len, rows)))
    if constant > CONSTANT:
        return (
            f"{100 * constant:.0f} % of {count} have no contrast (the first is {float(rows[0][0, 0, 0]):g} everywhere)",
            False,
        )
    if count > 1 and rows and all(torch.equal(one, rows[0][:1].expand_as(one)) for one in rows):
        return f"{count} are all the same one", False
    try:
        words, divergence = _strange(seen, sample)
        if words:
            return words, divergence < REFUSED
        words = _undecided(seen, sample)
        return words, not words
    except Exception as error:  # a batch of a size that the network does not take: the fit says so
        _LOG.info("calibration images are not compared with the network: %s", describe(error))
        return "", True


def _strange(seen: Capture, sample: list[Example]) -> tuple[str, float]:
    """Return that the images are far from what the batch norms hold, where they are, and how far."""
    norms = norms_in_use(seen)
    if not norms:
        return "", 0.0
    divergence, idle = norm_coverage(seen.model, norms, sample)
    if divergence < FAR:
        return "", divergence
    words = f"the divergence from its {len(norms)} batch norms is {divergence:.2f}, below {FAR:g} was expected"
    words += f", and {100 * idle:.0f} % of their channels hardly vary" if idle > IDLE else ""
    return words, divergence


def _undecided(seen: Capture, sample: list[Example]) -> str:
    """Return that all images have the same output or decision, where other inputs have others."""
    count = sum(map(images_in, sample))
    if count < 2:
        return ""
    answers: list[list[Tensor]] = []
    for number, batch in enumerate(sample, start=1):
        answers.append(outputs(seen.model, batch))
        if number == len(sample) or number & (number - 1) == 0:  # few tell most images apart
            columns = [*zip(*answers, strict=True)]
            if not columns or _told_apart(seen, columns, sample):
                return ""
    others = [_drawn(one) for one in sample]
    drawn = [*zip(*(outputs(seen.model, one) for one in others), strict=True)]
    if all(_is_flat(column, sample) for column in columns):
        dead = all(_is_flat(column, others) for column in drawn)
        return "" if dead else f"the network gives the same output for all of {count}"
    if any(column[0].dim() == 2 and _majority(column) > MOSTLY for column in drawn):
        return ""
    return f"the network decides alike for all of {count}, so they may show one thing, or nothing that it was made for"


def _told_apart(seen: Capture, columns: Sequence[Sequence[Tensor]], sample: Sequence[Example]) -> bool:
    """Return whether outputs differ from image to image, and in what they decide if they decide anything."""
    if all(_is_flat(column, sample[: len(column)]) for column in columns):
        return False
    trained = bool(norms_in_use(seen))
    restores = enlargement(sample[0].tensors()[0], columns[0][0])
    return bool(restores) or not all(_decides_alike(column, trained) for column in columns)


def _drawn(example: Example) -> Example:
    """Return drawn images with the mean and deviation of an example's."""
    draw = torch.Generator().manual_seed(0)

    def drawn(tensor: Tensor) -> Tensor:
        if tensor.dim() != 4 or not tensor.is_floating_point():
            return tensor
        count, channels, height, width = tensor.shape
        pixels = draw_images(count, channels, height, width, draw).to(tensor)
        scale = tensor.std(correction=0) / pixels.std(correction=0).clamp(min=1e-6)
        return (pixels - pixels.mean()) * scale + tensor.mean()

    return example.map(drawn)


def _is_flat(column: Sequence[Tensor], sample: Sequence[Example]) -> bool:
    rows = [one.float().flatten(1) for one, batch in zip(column, sample, strict=True) if len(one) == images_in(batch)]
    alike = len(rows) == len(sample) and len({one.shape[1] for one in rows}) == 1
    return alike and _spread(torch.cat(rows)) < FLAT


def _decides_alike(column: Sequence[Tensor], trained: bool) -> bool:
    """Return whether scores have one class everywhere, or one score that is never above 0.

    Maps (N, C, H, W) are asked of every network, vectors (N, C) only of a trained one.
    """
    dims, classes = column[0].dim(), column[0].shape[1] if column[0].dim() > 1 else 0
    if dims == 4 and classes == 1:
        return all(float(one.max()) < 0 for one in column)
    if dims != 4 and not (dims == 2 and classes > 2 and trained):
        return False
    return _majority(column) == 1


def _majority(column: Sequence[Tensor]) -> float:
    """Return the share of the most frequent class."""
    found = torch.cat([one.argmax(1).flatten() for one in column])
    return float((found == found.mode().values).double().mean())


def _spread(rows: Tensor) -> float:
    """Return the distance of outputs from their mean, relative to their size."""
    size = float(rows.square().mean())
    return float((rows - rows.mean(0)).square().mean()) / size if size > 0 else 0.0


def _mix(data: Calibration, made: Calibration, seed: int) -> Calibration:
    """Return both sets as one, in an order drawn at random, so that the first images are of both kinds."""

    def mixed(one: tuple[Example, ...], two: tuple[Example, ...]) -> tuple[Example, ...]:
        batches = [*two, *one]
        whole, *rest = join_batches(batches, sum(map(images_in, batches)))
        if rest:
            return tuple(batches)
        order = torch.randperm(images_in(whole), generator=torch.Generator().manual_seed(seed), device="cpu")
        return tuple(select_images(whole, rows) for rows in order.split(BATCH))

    return dataclasses.replace(
        data, fitted=mixed(data.fitted, made.fitted), held_back=mixed(data.held_back, made.held_back)
    )
