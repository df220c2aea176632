"""The steps of a recovery one after the other: judged, taken back, saved and interrupted."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, Self

from tqdm import tqdm

from convsurgeon.base import processes as world
from convsurgeon.distill.batches import Batch, Stream
from convsurgeon.distill.checkpoint import RunFolder
from convsurgeon.distill.history import Log
from convsurgeon.distill.loss import Judge
from convsurgeon.distill.record import Score
from convsurgeon.distill.training import Training

MOST_IDLE = 2
"""Legs in a row that are taken back; then the run is over."""


def train(
    training: Training,
    log: Log,
    stream: Stream,
    judge: Judge,
    folder: RunFolder | None,
    fixed: dict[str, Any],
    progress: bool,
) -> str:
    """Runs the steps that are left; says why it ended. `fixed` is what else a checkpoint is to hold.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; where there is a folder the run is saved in it.
    """
    began = time.monotonic() - log.seconds
    every = max(1, min(stream.epoch, training.steps // 10 or 1))
    bar = tqdm(
        total=training.steps,
        initial=training.step,
        desc="recovering",
        unit="step",
        disable=world.silent(progress),
    )

    def save(ended: str) -> None:
        log.seconds = time.monotonic() - began
        if folder is not None and world.rank() == 0:
            folder.save({**fixed, "ended": ended, **training.state(), "log": log.state()}, log.rows)

    ended = ""
    with bar, Interruption(folder is not None) as asked:
        for batch in stream.steps(training.step, training.steps):
            if ended := _advanced(training, log, batch):
                break
            bar.update()
            last, legs = training.step == training.steps, training.legs()
            if last or training.step % every == 0 or training.step == legs[-1]:
                score = log.judge(training, judge, training.step / stream.epoch, time.monotonic() - began)
                bar.set_postfix(_shown(log, score, training.lr))
            if training.step == legs[-1] and (ended := _taken_back(training, log, legs)):
                break
            if asked.everywhere():
                save("")
                where = f"step {training.step} of {training.steps}"
                raise KeyboardInterrupt(f"{where} is saved in {folder and folder.path}; resume goes on from there")
            if not last and training.step % training.recipe.save_every == 0:
                save("")
    ended = ended or "all steps done"
    save(ended)
    return ended


def _advanced(training: Training, log: Log, batch: Batch) -> str:
    """One step, or the way back where its loss is not finite; says why, where the run is over by that."""
    try:
        log.losses.append(training.advance(batch))
    except FloatingPointError as error:
        if not (training.goes_back and training.strayed):
            return str(error)
        training.step += 1  # without this batch
        training.go_back(log.weights)
    return ""


def _taken_back(training: Training, log: Log, legs: Sequence[int]) -> str:
    """Goes back where the leg that ends here brought no nearer state; says why, where the run is over by that."""
    idle = log.idle(legs) if training.goes_back else 0
    if idle >= MOST_IDLE:
        return f"no nearer state in {idle} quarters"
    if idle:
        training.go_back(log.weights)
    return ""


class Interruption:
    """Turns the first Ctrl-C into a question that is asked between two steps; a second one stops at once.

    Args:
        patient: false leaves Ctrl-C as it is.
    """

    def __init__(self, patient: bool) -> None:
        self._patient = patient and threading.current_thread() is threading.main_thread()
        self._asked = False

    def __enter__(self) -> Self:
        if self._patient:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._patient:
            signal.signal(signal.SIGINT, self._before)

    def everywhere(self) -> bool:
        """Whether it was pressed in any process; all of them must ask."""
        return world.totals(float(self._asked))[0] > 0

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


def _shown(log: Log, score: Score, lr: float) -> dict[str, str]:
    """What the bar says."""
    loss = log.rows[-1]["loss"]  # none where every batch since the last row was left out
    values = {"loss": "-" if loss is None else f"{loss:.4f}"}
    values |= {"distance": f"{score.distance:.4f}", "lr": f"{lr:.1e}"}
    return values if score.agreement is None else {**values, "agreement": f"{score.agreement:.2%}"}
