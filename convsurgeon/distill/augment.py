"""Augmentation that any image network stands: mirrored and shifted images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from convsurgeon.base.errors import RecoveryError


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
            mirrored = (torch.rand(len(images)) < 0.5).to(images.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return self._shifted(images) if self.shift else images

    def _shifted(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        room = F.pad(images, [self.shift] * 4)
        starts = torch.randint(2 * self.shift + 1, (len(images), 2)).tolist()
        # narrow copies, because one indexing by three tensors takes longer
        cut = [
            image[:, top : top + height, left : left + width] for image, (top, left) in zip(room, starts, strict=True)
        ]
        return torch.stack(cut)
