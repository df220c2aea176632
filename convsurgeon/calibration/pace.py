"""How many images there is time for, where the user says how many minutes a conversion may take."""

from __future__ import annotations

import math
import warnings

from convsurgeon.calibration.collect import LIMIT

COSTLY_S = 0.25
"""A run of the network on one image, below which it is not the images that take the time."""
RUNS, PASSES = 100, 15
"""Runs of the network that timing its layers takes, and passes over the images of the rest of a default conversion."""
LEAST = 16
"""Images, with fewer of which nothing is fitted that could be believed."""


def images_in_time(minutes: float, left_s: float, run_s: float) -> int:
    """Return how many images a conversion can use; warn where the least that it needs takes longer than it may.

    Args:
        minutes: that the user named.
        left_s: seconds that are left of them.
        run_s: seconds of a run of the network on one image.
    """
    if run_s < COSTLY_S:
        return LIMIT
    images = (left_s / run_s - RUNS) / PASSES
    if images < LEAST:
        least = math.ceil((RUNS + PASSES * LEAST) * run_s / 60)
        text = (
            f"minutes={minutes:g}: a run of the network takes {run_s:.2g} s here, so the shortest search takes about "
            f"{least} min; smaller images are faster, and so is forms= or --form, which searches nothing"
        )
        warnings.warn(text, stacklevel=6)
    affordable = min(max(images, LEAST), LIMIT)
    return 1 << int(math.log2(affordable))  # the same though runs scatter: a search goes on from one of the same images
