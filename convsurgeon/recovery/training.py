"""The steps of a recovery: what changes in them, what a checkpoint holds of it, and how they are interrupted."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm import tqdm

from convsurgeon.base import world
from convsurgeon.base.errors import RecoveryError, described
from convsurgeon.graph.example import Example
from convsurgeon.graph.state import saved
from convsurgeon.recovery.checkpoint import RunFolder
from convsurgeon.recovery.objective import Judge, Objective
from convsurgeon.recovery.recipe import OPTIMIZERS, Recipe
from convsurgeon.recovery.stream import Batch, Stream, own_chance
from convsurgeon.report.recovery import Score

NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]
Transform = Callable[[Any], Any]


LEGS = 4
"""That a run's steps are parted into; one in which no nearer state was found is taken back."""
SLOWER = 5
"""What the rate is divided by then."""
MOST_IDLE = 2
"""Legs in a row that are taken back; then the run is over."""


class Training:
    """A run: the model, its optimiser and schedule.

    Args:
        model: trained in place; in eval mode but for its norms if the recipe has them updated.
        objective: the loss of a batch.
        recipe: the settings.
        lr: the highest learning rate.
        steps: of the whole run.
        optimizer: makes one for the parameters, or None for the recipe's with `lr`.
        scheduler: makes one for the optimiser and the number of steps, or None for a warm-up and half a cosine.
        transform: of the inputs, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        recipe: Recipe,
        lr: float,
        steps: int,
        parameters: Sequence[nn.Parameter],
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.model, self.objective, self.recipe, self.steps = model, objective, recipe, steps
        self._parameters, self._transform = list(parameters), transform
        self._optimizer, self._scheduler = optimizer, scheduler
        self._wrapped = DistributedDataParallel(model) if world.size() > 1 else model
        self.step = 0
        self._begin(lr)

    def _begin(self, highest: float) -> None:
        """A fresh optimiser from this step on, with a schedule that goes on where it was."""
        since, self._since, self._highest = self.step, self.step, highest
        if self._optimizer is None:
            self.optimizer: Optimizer = OPTIMIZERS[self.recipe.optimizer](self._parameters, lr=highest)
        else:
            self.optimizer = self._optimizer(self._parameters)
        if self._scheduler is None:
            self.scheduler: LRScheduler = LambdaLR(
                self.optimizer, lambda step: self.recipe.factor(self.steps, since, step)
            )
        else:
            self.scheduler = self._scheduler(self.optimizer, self.steps)

    def advance(self, batch: Batch) -> float:
        """One step; gives the loss of the whole batch, over all processes.

        Raises:
            FloatingPointError: the loss is not finite; nothing was changed.
        """
        with own_chance(self.recipe.seed, self.step):
            loss = self._loss(batch)
            total = world.totals(float(loss.detach()))[0] / world.size()
            if not math.isfinite(total):
                raise FloatingPointError(f"the loss became {total} in step {self.step + 1}")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if self.recipe.clip is not None:
                nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip)
            self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return total

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def legs(self) -> list[int]:
        """The steps at which legs have ended so far, the first one's start before them."""
        ends = {self.steps * leg // LEGS for leg in range(LEGS)}
        return sorted(end for end in ends if end <= self.step)

    @property
    def goes_back(self) -> bool:
        """Whether it may: a rate and a schedule that are the user's own are left alone."""
        return self._optimizer is None and self._scheduler is None

    @property
    def strayed(self) -> bool:
        """Whether steps have been taken since it last began, so that going back would change anything."""
        return self.step > self._since

    def go_back(self, weights: dict[str, Tensor]) -> None:
        """Begins again from these weights, slower, with the steps that are left."""
        self.model.load_state_dict(weights)
        self._begin(self._highest / SLOWER)

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on to the bit, as tensors and plain values."""
        return {
            "step": self.step,
            "since": self._since,
            "highest": self._highest,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""
        self.step = state["since"]
        self._begin(state["highest"])
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if _kinds(self.scheduler.state_dict()) != _kinds(state["scheduler"]):  # torch takes up anything here
            raise ValueError("its schedule has other parts")
        self.scheduler.load_state_dict(state["scheduler"])

    def _loss(self, batch: Batch) -> Tensor:
        if self._transform is not None:
            batch = Batch(_transformed(self._transform, batch.example), batch.labels)
        if self.recipe.channels_last:
            batch = Batch(batch.example.map(as_channels_last), batch.labels)
        kind = next(self.model.parameters()).device.type
        self._set_modes()
        with torch.autocast(kind, torch.bfloat16, enabled=self.recipe.amp):
            return self.objective(self._wrapped, self.model, batch)

    def _set_modes(self) -> None:
        """Eval mode, so that nothing is dropped out; norms learn new statistics only if they are to."""
        for module in self.model.modules():
            module.training = self.recipe.norms == "updated" and isinstance(module, NORMS)


class Log:
    """Rows of the log, and the best weights: those nearest to the original on held-back images that agree no less."""

    def __init__(self, model: nn.Module, start: Score) -> None:
        self.start = self.best = start
        self.best_step = 0
        self.weights = saved(model)
        self.rows: list[dict[str, Any]] = [_row(0, 0.0, None, start, 0.0, 0.0)]
        self.seconds = 0.0
        self.losses: list[float] = []

    def judge(self, training: Training, judge: Judge, epoch: float, seconds: float) -> Score:
        """Scores the model, and keeps its weights if they are the best so far."""
        score = judge.score(training.model)
        if score.better_than(self.best, self.start):
            self.best, self.best_step, self.weights = score, training.step, saved(training.model)
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
            try:
                log.losses.append(training.advance(batch))
            except FloatingPointError as error:
                if not (training.goes_back and training.strayed):
                    ended = str(error)
                    break
                training.step += 1  # without this batch
                training.go_back(log.weights)
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


def as_channels_last(tensor: Tensor) -> Tensor:
    """Images (N, C, H, W) in the memory format that torch's convs like best; other tensors as they are."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def unheard(training: Training, batch: Batch) -> list[nn.Parameter]:
    """Parameters that a batch's loss does not depend on; DistributedDataParallel takes none of them."""
    training.objective(training.model, training.model, batch).backward()
    found = [parameter for parameter in training.model.parameters() if parameter.grad is None]
    training.optimizer.zero_grad(set_to_none=True)
    return [parameter for parameter in found if parameter.requires_grad]


def _transformed(transform: Transform, example: Example) -> Example:
    """The user's transform gets the tensor of a model that takes one, and the `Example` of any other."""
    alone = len(example.args) == 1 and not example.kwargs and isinstance(example.args[0], Tensor)
    try:
        return Example.of(transform(example.args[0] if alone else example))
    except RecoveryError:
        raise
    except Exception as error:  # the user's own code
        raise RecoveryError(f"recover: the transform fails ({described(error)})") from error


def _kinds(state: dict[str, Any]) -> dict[str, Any]:
    """What a schedule's state is made of, its numbers aside."""
    return {
        name: [type(one) for one in value] if isinstance(value, list) else isinstance(value, int | float)
        for name, value in state.items()
    }


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


def _shown(log: Log, score: Score, lr: float) -> dict[str, str]:
    """What the bar says."""
    loss = log.rows[-1]["loss"]  # none where every batch since the last row was left out
    values = {"loss": "-" if loss is None else f"{loss:.4f}"}
    values |= {"distance": f"{score.distance:.4f}", "lr": f"{lr:.1e}"}
    return values if score.agreement is None else {**values, "agreement": f"{score.agreement:.2%}"}
