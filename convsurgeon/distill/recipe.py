"""The settings of a recovery, and augmentation that any image network stands: mirrored and shifted images."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convsurgeon.base import processes
from convsurgeon.base.errors import RecoveryError
from convsurgeon.base.precision import PRECISIONS, Precision

EPOCHS = 20
LEAST_STEPS = 400
BATCH, _LEAST_BATCH = 64, 8
_STEPS_AN_EPOCH = 16
_MOST_EPOCHS = 1_000_000


@dataclass(frozen=True)
class Augment:
    """A transform for `recover`: every image mirrored with probability 1/2, and shifted at random.

    Anything a data set asks for beyond that is a `transform` of its own, or the data set's.

    Args:
        flip: whether images may be mirrored left to right; not for text, digits or traffic signs.
        shift: by up to so many pixels each way, zeros moving in (He et al. 2016 take 4 for CIFAR-10).

    Raises:
        RecoveryError: `shift` is negative.
    """

    flip: bool = True
    shift: int = 0

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise RecoveryError(f"Augment: shift must be 0 or more pixels, got {self.shift}")

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to images of the same shape; draws from torch's generator."""
        if self.flip:
            mirrored = (torch.rand(len(images), dtype=torch.float32, device="cpu") < 0.5).to(images.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if not self.shift:
            return images
        height, width = images.shape[2:]
        room = F.pad(images, [self.shift] * 4)
        starts = torch.randint(2 * self.shift + 1, (len(images), 2), device="cpu").tolist()
        # narrow copies, because one indexing by three tensors takes longer
        cut = [
            image[:, top : top + height, left : left + width] for image, (top, left) in zip(room, starts, strict=True)
        ]
        return torch.stack(cut)


@dataclass(frozen=True)
class Recipe:
    """The settings of `recover`; what is None is found from the images.

    Args:
        epochs: passes over the images; by default 20, or what 400 steps take where that is more.
        batch_size: of all processes together; by default a 16th of the images, from 8 to 64.
        lr: the highest learning rate; by default the rate above the best of four in short trials.
        transform: inputs -> inputs, for augmentation (see `Augment`). It gets the tensor of a model that takes one,
            an `Example` otherwise. Original and converted model see the same result.
        precision: with `"int8"` the model computes in training and on held-back images as its int8 file will, so its
            weights learn to bear the rounding. By default that of the conversion.
        loss: (converted model's output, original's output) -> mean over the rows. By default the error of the outputs.
        hold_back: most images to judge by; a tenth of the images where that is less.
        limit: most images to use; an iterable is read no further.
        save_every: steps between checkpoints.
        seed: of the order of the images, those held back, and the random numbers of every step.

    Raises:
        RecoveryError: a setting is out of range.
    """

    epochs: float | None = None
    batch_size: int | None = None
    lr: float | None = None
    transform: Callable[[Any], Any] | None = None
    precision: Precision | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    hold_back: int = 512
    limit: int | None = None
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "hold_back", "limit", "save_every"):
            value = getattr(self, name)
            kind = "a number" if name in ("epochs", "lr") else "a whole number"
            known = isinstance(value, numbers.Real if kind == "a number" else numbers.Integral)
            if value is not None and not (known and 0 < value < math.inf):
                raise RecoveryError(f"recover: {name} must be {kind} above 0, got {value!r}")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise RecoveryError(f"recover: precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.epochs is not None and self.epochs > _MOST_EPOCHS:
            raise RecoveryError(f"recover: epochs={self.epochs:g} would never end; pass {_MOST_EPOCHS:,} or less")
        if not isinstance(self.seed, numbers.Integral) or self.seed < 0:
            raise RecoveryError(f"recover: seed must be a whole number from 0 on, got {self.seed!r}")

    def batch(self, images: int) -> int:
        """Return the size of a batch of all processes together, for so many images to learn from."""
        count = processes.size()
        size = self.batch_size
        if size is None:
            size = -(-min(BATCH, max(_LEAST_BATCH, images // _STEPS_AN_EPOCH)) // count) * count
        return size if size <= images else max(images // count, 1) * count

    def steps(self, epoch: int) -> int:
        """Return the steps of a whole run, where an epoch has so many."""
        return max(EPOCHS * epoch, LEAST_STEPS) if self.epochs is None else max(1, round(self.epochs * epoch))
