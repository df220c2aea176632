"""How a model is recovered, as plain data: what a checkpoint is compared with, and what a report says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from convsurgeon.base import processes as world
from convsurgeon.base.errors import RecoveryError
from convsurgeon.base.precision import PRECISIONS, Precision
from convsurgeon.distill.soap import Soap

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"soap": Soap, "adam": torch.optim.Adam}
"""That a recovery may name; each is called with the parameters and `lr`."""


EPOCHS = 20
LEAST_STEPS = 400
"""Of a run whose epochs are not given, however few its images are."""
BATCH, _LEAST_BATCH = 64, 8
_STEPS_AN_EPOCH = 16
"""That an epoch has at least, where the batch size is not given: small batches learn more from few images."""

_MOST_EPOCHS = 1_000_000


@dataclass(frozen=True)
class Recipe:
    """The settings of a recovery; `recover` says what each one means. What is None is found from the images.

    Raises:
        RecoveryError: one is out of range.
    """

    epochs: float | None = None
    batch_size: int | None = None
    lr: float | None = None
    optimizer: str = "soap"
    warm_up: float = 0.05
    norms: str = "frozen"
    features: float = 0.0
    label_weight: float = 1.0
    clip: float | None = None
    precision: Precision = "fp32"
    amp: bool = False
    channels_last: bool = True
    hold_back: int = 512
    images: int | None = None
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        _positive(self, "epochs", "batch_size", "lr", "clip", "hold_back", "images", "save_every")
        _within(self, "warm_up", 0, 1)
        _chosen(self, "optimizer", *OPTIMIZERS)
        _chosen(self, "norms", "frozen", "updated")
        _chosen(self, "precision", *PRECISIONS)
        if self.epochs is not None and self.epochs > _MOST_EPOCHS:
            raise RecoveryError(f"recover: epochs={self.epochs:g} would never end; pass {_MOST_EPOCHS:,} or less")
        if not 0 <= self.features < math.inf or not 0 <= self.label_weight < math.inf:
            raise RecoveryError("recover: features and label_weight are weights in the loss; pass 0 or more")

    def batch(self, images: int) -> int:
        """The size of a batch of all processes together, for so many images to learn from."""
        size = self.batch_size
        if size is None:
            size = -(-min(BATCH, max(_LEAST_BATCH, images // _STEPS_AN_EPOCH)) // world.size()) * world.size()
        return size if size <= images else max(images // world.size(), 1) * world.size()

    def steps(self, epoch: int) -> int:
        """Of a whole run, where an epoch has so many."""
        return max(EPOCHS * epoch, LEAST_STEPS) if self.epochs is None else max(1, round(self.epochs * epoch))

    def factor(self, steps: int, since: int, step: int) -> float:
        """The learning rate as a share of the highest: a linear warm-up, and half a cosine down to 0.

        Loshchilov & Hutter 2017. An optimiser that is fresh since a later step warms up again on its way down.

        Args:
            steps: of the run.
            since: how many of them were over when the optimiser began.
            step: how many it has made.
        """
        rising = max(1, round(self.warm_up * steps))
        falling = 0.5 * (1 + math.cos(math.pi * (since + step - rising) / max(1, steps - rising)))
        return min(1.0, (step + 1) / rising) * (falling if since + step >= rising else 1.0)


def _positive(recipe: Recipe, *names: str) -> None:
    for name in names:
        value = getattr(recipe, name)
        if value is not None and not 0 < value < math.inf:
            raise RecoveryError(f"recover: {name} must be {'finite' if value == math.inf else 'above 0'}, got {value}")


def _within(recipe: Recipe, name: str, low: float, high: float) -> None:
    value = getattr(recipe, name)
    if value is not None and not low <= value < high:
        raise RecoveryError(f"recover: {name} must lie in [{low}, {high}), got {value}")


def _chosen(recipe: Recipe, name: str, *known: str) -> None:
    if (value := getattr(recipe, name)) not in known:
        raise RecoveryError(f"recover: {name} must be one of {', '.join(known)}, got {value!r}")
