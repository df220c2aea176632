"""What a recovery did, for reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """How far a model is from its original on held-back images: the distance it is taught by, and top-1 agreement.

    `agreement` is the share of rows with the same largest entry; None unless the output looks like a classifier's.
    """

    distance: float
    agreement: float | None

    def better_than(self, other: Score, start: Score) -> bool:
        """Nearer than `other`, and agreeing no less than at the start: both have to hold for `never worse`."""
        agrees = self.agreement is None or start.agreement is None or self.agreement >= start.agreement
        return self.distance < other.distance and agrees


@dataclass(frozen=True)
class Recovery:
    """Settings that were found, and how near the model was to its original on held-back images before and after.

    `best_step` is the step whose weights were kept, 0 for those it began with; `trials` holds (learning rate, distance
    after a short run); `rows` the log, whose last row is of the last step.
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
    seconds: float
    ended: str
    trials: tuple[tuple[float, float], ...]
    rows: tuple[dict[str, float | None], ...]

    @property
    def gaining(self) -> bool:
        """Whether it ended while it still gained: the last quarter brought a tenth of all that was gained, or more.

        A rate that falls to nothing ends every run with small gains.
        """
        before = [row["distance"] for row in self.rows if (row["step"] or 0) <= 0.75 * self.steps]
        reached = min(distance for distance in before if distance is not None)
        gained = self.before.distance - self.after.distance
        return self.best_step > 0.75 * self.steps and reached - self.after.distance >= 0.1 * gained > 0
