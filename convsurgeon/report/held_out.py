"""What two files give for held-out images: pictures of the worst and the median, or the decisions that changed.

Outputs are told apart as elsewhere: decisions over classes, maps of decisions, and images. Others are not shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convsurgeon.base.arrays import Array
from convsurgeon.int8.compare import run_both
from convsurgeon.onnxnet.session import Feed
from convsurgeon.report.png import draw_classes, draw_marks, draw_values

_MOST = 256
"""Images that are looked at."""
_SHOWN = 8
"""Changed decisions that are shown."""

Pair = tuple[Array | None, Array, Array]
"""An image as it went in, where it is one, and what both files gave."""


@dataclass(frozen=True)
class Row:
    """Pictures of one image, each with its caption, and what is to be said of it."""

    title: str
    pictures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class HeldOut:
    """Images that were not fitted to, and what became of them; `lead` says what is shown."""

    lead: str
    rows: tuple[Row, ...]


def compare_images(original: Path, other: Path, feeds: Sequence[Feed], *, maps_decide: bool) -> HeldOut | None:
    """Return what two files give for the same images; None where neither pictures nor decisions come out.

    `maps_decide` tells whether a map is of decisions at every place, not an image.
    """
    first = next(_pairs(original, other, feeds[:1]), None)
    if first is None:
        return None
    _, one, _ = first
    if one.ndim == 1 and not _many_yes_or_no(one):
        return _changed(list(_pairs(original, other, feeds)))
    decide = maps_decide and len(one) > 1  # a single channel says as much in grey
    if one.ndim == 3 and (decide or len(one) in (1, 3)):
        return _worst_and_median(original, other, feeds, decide)
    return None


def _changed(pairs: Sequence[Pair]) -> HeldOut:
    both = [(_decide(one), _decide(two)) for _, one, two in pairs]
    changed = [index for index, (one, two) in enumerate(both) if one != two]
    lead = f"{len(changed)} of {len(pairs)} decisions changed"
    lead += f"; {_SHOWN} of them are shown." if len(changed) > _SHOWN else "."
    rows = []
    for index in changed[:_SHOWN]:
        image, (one, two) = pairs[index][0], both[index]
        pictures = () if image is None else (("the image", _as_it_is(image)),)
        rows.append(Row(f"Image {index}: class {one} before, class {two} now", pictures))
    return HeldOut(lead, tuple(rows))


def _worst_and_median(original: Path, other: Path, feeds: Sequence[Feed], decide: bool) -> HeldOut:
    """Return the image whose output changed most, and the one in the middle; images are run again, not kept."""
    errors = [_error(one, two, decide) for _, one, two in _pairs(original, other, feeds)]
    order = np.argsort(errors, kind="stable")
    each = len(next(iter(feeds[0].values())))
    rows = []
    for word, index in (("Worst", order[-1]), ("Median", order[len(order) // 2])):
        found = list(_pairs(original, other, feeds[index // each : index // each + 1]))[index % each]
        share = f"{errors[index]:.2%}"
        what = f"{share} of the places decide otherwise" if decide else f"error {share} of the output's variance"
        rows.append(Row(f"{word} of {len(errors)} images: {what}", _draw(found, decide)))
    return HeldOut("What the original gives, what the converted network gives, and where they differ.", tuple(rows))


def _draw(pair: Pair, decide: bool) -> tuple[tuple[str, str], ...]:
    """Return the pictures of one image: as it went in, both outputs, and their difference."""
    image, one, two = pair
    first = () if image is None else (("input", _as_it_is(image)),)
    if decide:
        own, others = _decide(one), _decide(two)
        pictures = (("original", draw_classes(own)), ("converted", draw_classes(others)))
        return (*first, *pictures, ("decides otherwise", draw_marks(own != others)))
    low, high, apart = float(one.min()), float(one.max()), np.abs(two - one)
    times = 2 ** max(0, math.floor(math.log2((high - low) / float(apart.max())))) if apart.any() and high > low else 1
    pictures = (("original", draw_values(one, low, high)), ("converted", draw_values(two, low, high)))
    return (*first, *pictures, (f"difference, {times} times", draw_values(times * apart, 0.0, high - low)))


def _pairs(original: Path, other: Path, feeds: Sequence[Feed]) -> Iterator[Pair]:
    """Yield every image with the first output of both files."""
    for feed, wanted, found in run_both(original, other, feeds[:_MOST]):
        one, two = wanted[0], found[0]
        if one.shape != two.shape or one.ndim not in (2, 4) or not np.isfinite(two).all():
            return
        images = next(iter(feed.values()))
        pictured = len(feed) == 1 and images.ndim == 4 and images.shape[1] in (1, 3) and len(images) == len(one)
        for index in range(len(one)):
            yield images[index] if pictured else None, one[index], two[index]


def _as_it_is(image: Array) -> str:
    """Return an input as a picture, stretched from its darkest to its brightest value."""
    return draw_values(image, float(image.min()), float(image.max()))


def _decide(output: Array) -> Array:
    """Return the largest channel, or of a single one whether it is above its middle."""
    if len(output) > 1:
        return np.asarray(output.argmax(0))
    chances = bool(((output >= 0) & (output <= 1)).all())
    return np.asarray(output[0] > (0.5 if chances else 0.0), dtype=np.int64)


def _many_yes_or_no(output: Array) -> bool:
    """Return whether channels are chances that exclude nothing."""
    return len(output) > 1 and bool(((output >= 0) & (output <= 1)).all()) and abs(float(output.sum()) - 1) > 0.01


def _error(one: Array, two: Array, decide: bool) -> float:
    if decide:
        return float(np.mean(_decide(one) != _decide(two)))
    apart = np.square(two.astype(np.float64) - one).mean()
    return float(apart / (one.var() or 1.0))
