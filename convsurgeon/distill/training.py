"""One step of a recovery, and all that steps change: the model, its optimiser and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from convsurgeon.base import processes as world
from convsurgeon.base.errors import RecoveryError, describe
from convsurgeon.distill.batches import Batch, own_chance
from convsurgeon.distill.loss import Objective
from convsurgeon.distill.recipe import OPTIMIZERS, Recipe
from convsurgeon.graph.example import Example

NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]
Transform = Callable[[Any], Any]


LEGS = 4
"""That a run's steps are parted into; one in which no nearer state was found is taken back."""
SLOWER = 5
"""What the rate is divided by then."""


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
        raise RecoveryError(f"recover: the transform fails ({describe(error)})") from error


def _kinds(state: dict[str, Any]) -> dict[str, Any]:
    """What a schedule's state is made of, its numbers aside."""
    return {
        name: [type(one) for one in value] if isinstance(value, list) else isinstance(value, int | float)
        for name, value in state.items()
    }
