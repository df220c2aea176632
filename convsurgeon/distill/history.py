"""What a recovery has come to so far: a row for every time it was judged, and its best state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from convsurgeon.distill.loss import Judge
from convsurgeon.distill.record import Score
from convsurgeon.distill.training import Training
from convsurgeon.graph.state import copy_state


class Log:
    """Rows of the log, and the best weights: those nearest to the original on held-back images that agree no less."""

    def __init__(self, model: nn.Module, start: Score) -> None:
        self.start = self.best = start
        self.best_step = 0
        self.weights = copy_state(model)
        self.rows: list[dict[str, Any]] = [_row(0, 0.0, None, start, 0.0, 0.0)]
        self.seconds = 0.0
        self.losses: list[float] = []

    def judge(self, training: Training, judge: Judge, epoch: float, seconds: float) -> Score:
        """Scores the model, and keeps its weights if they are the best so far."""
        score = judge.score(training.model)
        if score.better_than(self.best, self.start):
            self.best, self.best_step, self.weights = score, training.step, copy_state(training.model)
        loss = sum(self.losses) / len(self.losses) if self.losses else None
        self.losses = []
        self.rows.append(_row(training.step, epoch, loss, score, training.lr, seconds))
        return score

    def idle(self, legs: Sequence[int]) -> int:
        """How many legs in a row have brought no nearer state; `legs` are the steps of their ends."""
        nearest = min(self.rows, key=lambda row: row["distance"])
        return sum(end >= nearest["step"] for end in legs[:-1])

    def state(self) -> dict[str, Any]:
        """As tensors and plain values."""
        scores = {
            name: [score.distance, score.agreement] for name, score in (("start", self.start), ("best", self.best))
        }
        return {
            **scores,
            "best_step": self.best_step,
            "weights": self.weights,
            "rows": self.rows,
            "seconds": self.seconds,
            "losses": self.losses,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""
        if {name: value.shape for name, value in state["weights"].items()} != {
            name: value.shape for name, value in self.weights.items()
        }:
            raise ValueError("its best weights are another model's")
        self.start, self.best = Score(*state["start"]), Score(*state["best"])
        for name in ("best_step", "weights", "rows", "seconds", "losses"):
            setattr(self, name, state[name])


def _row(step: int, epoch: float, loss: float | None, score: Score, lr: float, seconds: float) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": round(epoch, 3),
        "loss": loss,
        "distance": score.distance,
        "agreement": score.agreement,
        "lr": lr,
        "seconds": round(seconds, 2),
    }
