"""One trainer for a converted model: steps of SOAP towards the original's outputs, judged on held-back images.

The learning rate rises over a tenth of the steps and falls with a cosine. Where a quarter of the steps brought no
better state, the next quarter begins at the best one with a fifth of the rate. The joint fit and `recover` are settings
of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.base import processes
from convsurgeon.base.progress import bar
from convsurgeon.calibration.dataset import images_in, select_images
from convsurgeon.distill.batches import own_chance
from convsurgeon.distill.record import Score
from convsurgeon.distill.soap import Soap
from convsurgeon.fit.sensitivity import images_at_once
from convsurgeon.graph.example import Example
from convsurgeon.graph.state import copy_state, evaluating, restore_state

QUARTERS = 4
SLOWER = 5
"""What the rate is divided by after a quarter without a better state."""
MOST_IDLE = 2
"""Quarters in a row without a better state that end a run."""
_WARM_UP = 0.1


class Distiller:
    """A training run: the student, its optimiser, the best weights so far and a log.

    The student is trained in place, in eval mode: nothing is dropped out and batch norms keep their statistics. Only
    `parameters` move. `loss` is the mean over the images of a batch, `judge` scores a model, and `start` is the
    student's score as it is. It is judged every `judge_every` steps and at the end of every quarter. With `shared` the
    processes of `torchrun` each take their share of every batch.
    """

    def __init__(
        self, student: nn.Module, parameters: Sequence[nn.Parameter], *, loss: Callable[[Example], Tensor],
        judge: Callable[[nn.Module], Score], start: Score, steps: int, rate: float, seed: int = 0,
        judge_every: int | None = None, shared: bool = False,
    ) -> None:  # fmt: skip
        self.student, self.steps, self.rate, self.seed = student, steps, rate, seed
        self._parameters, self._loss, self._judge, self._shared = list(parameters), loss, judge, shared
        self._judge_every = judge_every or steps
        self.step = self.best_step = 0
        self.start = self.best = start
        self.weights = copy_state(student, parameters)
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._log(None, start, 0.0)
        self._losses: list[float] = []
        self._at_once: dict[tuple[Any, ...], int] = {}
        self._restart(rate)

    def _restart(self, rate: float) -> None:
        self.rate, self._since = rate, self.step
        self._optimizer = Soap(self._parameters, lr=rate)

    def _go_back(self) -> None:
        restore_state(self.student, self.weights)
        self._restart(self.rate / SLOWER)

    @property
    def lr(self) -> float:
        """Return the learning rate of the next step."""
        done = self.step / self.steps
        return self.rate * min(1.0, done / _WARM_UP + 0.1) * (1 + math.cos(math.pi * done)) / 2

    def run(
        self, batches: Iterable[Example], *, desc: str, progress: bool, save: Callable[[], None] | None = None,
        save_every: int = 100,
    ) -> str:  # fmt: skip
        """Take the steps that are left and put the best weights into the student; return why it ended.

        There is a batch for every step that is left; of all processes this one's share. `save` writes a checkpoint.
        """
        began = time.monotonic() - self.seconds
        ends = {math.ceil(self.steps * quarter / QUARTERS) for quarter in range(QUARTERS + 1)}
        ended = ""
        with bar(total=self.steps, desc=desc, unit="step", show=progress) as shown:
            shown.update(self.step)
            for batch in batches:
                if self.step == self.steps or (ended := self._advance_or_go_back(batch)):
                    break
                shown.update()
                self.seconds = time.monotonic() - began
                if self.step in ends or self.step % self._judge_every == 0:
                    shown.set_postfix_str(self._judged())
                if self.step in ends and self.step < self.steps and (ended := self._end_of_quarter(ends)):
                    break
                if save is not None and self.step % save_every == 0 and self.step < self.steps:
                    save()
        restore_state(self.student, self.weights)
        return ended or "all steps done"

    def _advance_or_go_back(self, batch: Example) -> str:
        """Take a step, or go back where its loss is not finite; return why the run is over, if it is."""
        try:
            self._losses.append(self.advance(batch))
        except FloatingPointError as error:
            if self.step == self._since:  # the best weights themselves: going back changes nothing
                return str(error)
            self.step += 1  # without this batch
            self._go_back()
        return ""

    def _end_of_quarter(self, ends: set[int]) -> str:
        """Go back where the quarter brought no better state; return why the run is over, if it is."""
        nearest = min(self.rows, key=lambda row: row["error"])["step"]
        idle = sum(nearest <= end < self.step for end in ends)
        if idle >= MOST_IDLE:
            return f"no better state in {idle} quarters"
        if idle:
            self._go_back()
        return ""

    def advance(self, batch: Example) -> float:
        """Take one step; return the loss of the whole batch.

        Raises:
            FloatingPointError: the loss is not finite; nothing was changed.
        """
        parts, images, total = self._parts(batch), images_in(batch), 0.0
        gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        with own_chance(self.seed, self.step, processes.rank() if self._shared else 0), evaluating(self.student):
            for part in parts:
                with torch.enable_grad():
                    loss = self._loss(part) * (images_in(part) / images)
                found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
                gradients = [sum_ if one is None else sum_ + one for sum_, one in zip(gradients, found, strict=True)]
                total += float(loss.detach())
        if self._shared:
            total = processes.totals(total)[0] / processes.size()
            gradients = [one / processes.size() for one in processes.added(*gradients)]
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss became {total} in step {self.step + 1}")
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr
        self._optimizer.step()
        for parameter in self._parameters:
            parameter.grad = None
        self.step += 1
        return total

    def _parts(self, batch: Example) -> list[Example]:
        """Return a batch in parts whose activations fit into memory for a backward pass."""
        shape = tuple(tensor.shape[1:] for tensor in batch.tensors())
        if shape not in self._at_once:
            with evaluating(self.student):
                self._at_once[shape] = images_at_once(self.student, batch)
        size = self._at_once[shape]
        return [select_images(batch, slice(first, first + size)) for first in range(0, images_in(batch), size)]

    def _judged(self) -> str:
        """Score the student, keep its weights if they are the best so far, and return a line for the bar."""
        score = self._judge(self.student)
        if score.better_than(self.best, self.start):
            self.best, self.best_step, self.weights = score, self.step, copy_state(self.student, self._parameters)
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses = []
        self._log(loss, score, self.lr)
        agreement = "" if score.agreement is None else f", agreement {score.agreement:.2%}"
        return f"error {self.start.error:.4f} -> {score.error:.4f}{agreement}"

    def _log(self, loss: float | None, score: Score, lr: float) -> None:
        values = {"step": self.step, "loss": loss, "error": score.error, "agreement": score.agreement, "lr": lr}
        self.rows.append({**values, "seconds": round(self.seconds, 2)})

    def state(self) -> dict[str, Any]:
        """Return all that the run needs to go on to the bit, as tensors and plain values."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "since": self._since,
            "losses": self._losses,
            "start": [self.start.error, self.start.agreement],
            "best": [self.best.error, self.best.agreement],
            "student": self.student.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.student.load_state_dict(state["student"])
        self.step = state["since"]
        self._restart(state["rate"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._losses = state["losses"]
        self.start, self.best = Score(*state["start"]), Score(*state["best"])
        for name in _PLAIN:
            setattr(self, name, state[name])
        if any(row.keys() != self.rows[0].keys() or not isinstance(row["step"], int) for row in self.rows):
            raise ValueError("a row of the log is damaged")


_PLAIN = ("step", "best_step", "rate", "seconds", "rows", "weights")
