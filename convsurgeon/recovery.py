"""What a recovery did, for reports."""

from __future__ import annotations

from dataclasses import dataclass

from convsurgeon.objective import Score


@dataclass(frozen=True)
class Recovery:
    """Settings that were found, and how near the model was to its original on held-back images before and after.

    `best_step` is the step whose weights were kept, 0 for those it began with; `averaged` says that they are the moving
    average; `trials` holds (learning rate, distance after a short run); `rows` the log.
    """

    before: Score
    after: Score
    best_step: int
    steps: int
    epoch_steps: int
    batch_size: int
    images: int
    held_back: int
    lr: float
    averaged: bool
    seconds: float
    ended: str
    trials: tuple[tuple[float, float], ...]
    rows: tuple[dict[str, float | None], ...]
