"""What a recovery did, for reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """How far a model is from its original on held-back images.

    Args:
        error: of the outputs (see `graph.output_error`), or the user's own loss.
        agreement: share of images with the same decision; None unless there is one for each (see `graph.decisions`).
        overlap: of decisions at every place of a map, intersection over union; None without maps.
        lost: share of right decisions that are lost, by the original's own probabilities.
        doubt: standard errors of the error and of the share lost, over images.
    """

    error: float
    agreement: float | None = None
    overlap: float | None = None
    lost: float = 0.0
    doubt: tuple[float, float] = (0.0, 0.0)

    def better_than(self, other: Score, start: Score) -> bool:
        """Return whether the error is below another's and the agreement not below that at the start."""
        agrees = self.agreement is None or start.agreement is None or self.agreement >= start.agreement
        return self.error < other.error and agrees


@dataclass(frozen=True)
class Recovery:
    """How a recovery went: scores on held-back images before and after, and the settings that were found.

    `best_step` is the step whose weights were kept; 0 for those at the start. `trials` are (learning rate, error after
    a short run) of every rate that was tried, and `rows` the log, one for every time the model was judged.
    """

    before: Score
    after: Score
    best_step: int
    steps: int
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
        """Return whether a tenth or more of the gain came in the last quarter: more steps would gain more.

        A learning rate that falls to zero ends every run with small gains.
        """
        before = [row["error"] for row in self.rows if (row["step"] or 0) <= 0.75 * self.steps]
        reached = min((error for error in before if error is not None), default=self.before.error)
        gained = self.before.error - self.after.error
        return self.best_step > 0.75 * self.steps and reached - self.after.error >= 0.1 * gained > 0
