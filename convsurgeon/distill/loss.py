"""What a converted model is taught: to answer as the original does, and if wanted to compute the same on the way.

The distance of two answers is the squared error over the variance of the original's output, of logits too (Ba & Caruana
2014): against the Kullback-Leibler divergence of Hinton, Vinyals & Dean 2015 it agreed more on unseen images, because a
converted model begins near its original, whose every logit says more than the few that the softmax leaves. Features are
the outputs of the rewritten convs, compared likewise (Romero et al. 2015). All scales are constants that are measured
beforehand, so that the loss of a batch is the mean of its parts' losses, on however many processes they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.base import processes as world
from convsurgeon.base.errors import RecoveryError
from convsurgeon.distill.batches import Batch
from convsurgeon.distill.record import Score
from convsurgeon.graph.outputs import float_tensors, pair_outputs
from convsurgeon.graph.state import evaluating, undisturbed

Loss = Callable[[Any, Any], Tensor]
"""(output of the converted model, output of the original or labels) -> a number, the mean over the rows."""


class Objective:
    """The loss of a batch.

    Args:
        original: the teacher; left as it is.
        names: of the rewritten convs, whose outputs are the features.
        sample: batches that the scales are measured on; every process passes the same ones.
        loss: the user's distance of two outputs, or None for the one described above.
        features: weight of the features' mean relative error, 0 for none.
        label_loss: the user's loss on labels, or None.
        label_weight: its weight.
    """

    def __init__(
        self,
        original: nn.Module,
        names: Sequence[str],
        sample: Sequence[Batch],
        loss: Loss | None = None,
        features: float = 0.0,
        label_loss: Loss | None = None,
        label_weight: float = 1.0,
    ) -> None:
        self._original, self._features = original, features
        self._loss, self._label_loss, self._label_weight = loss, label_loss, label_weight
        self._names = list(names) if features else []
        with undisturbed(original):
            answers = [float_tensors(batch.example.run(original)) for batch in sample]
            with _watched(original, self._names) as seen:
                sample[0].example.run(original)
        self.classifier = all(len(outs) == 1 and outs[0].dim() == 2 and outs[0].shape[1] > 1 for outs in answers)
        self._scales = [_scale(list(column)) for column in zip(*answers, strict=True)]
        self._powers = [_scale([outs]) for outs in seen]

    def __call__(self, model: nn.Module, bare: nn.Module, batch: Batch) -> Tensor:
        """The loss of one batch; `bare` is `model` without what wraps it for many processes.

        Raises:
            RecoveryError: labels are asked for and the batch has none.
        """
        with torch.no_grad(), evaluating(self._original), _watched(self._original, self._names) as wanted:
            answer = batch.example.run(self._original)
        with _watched(bare, self._names) as found:
            given = batch.example.run(model)
        loss = self.distance(given, answer)
        if self._names:
            parts = [_squared(a, b, scale) for a, b, scale in zip(found, wanted, self._powers, strict=True)]
            loss = loss + self._features * torch.stack(parts).mean()
        if self._label_loss is not None:
            if batch.labels is None:
                raise RecoveryError("recover: label_loss needs labels; pass batches of (inputs, labels)")
            loss = loss + self._label_weight * self._label_loss(given, batch.labels)
        return loss

    def distance(self, given: Any, answer: Any) -> Tensor:
        """Of two outputs, as a mean over the rows."""
        if self._loss is not None:
            return self._loss(given, answer)
        pairs = pair_outputs(float_tensors(answer), float_tensors(given))
        return torch.stack([_squared(b, a, scale) for (a, b), scale in zip(pairs, self._scales, strict=True)]).mean()


class Judge:
    """Scores models on held-back batches; every process takes its share of them."""

    def __init__(self, original: nn.Module, batches: Sequence[Batch], objective: Objective) -> None:
        self._objective = objective
        self._batches = [batch.example for batch in batches[world.rank() :: world.size()]]
        with undisturbed(original):
            self._answers = [example.run(original) for example in self._batches]

    def score(self, model: nn.Module) -> Score:
        """Over all processes; an infinite distance where an output is not finite."""
        far = agreed = rows = 0.0
        with evaluating(model):
            for example, answer in zip(self._batches, self._answers, strict=True):
                given = example.run(model)
                count = example.tensors()[0].shape[0]
                far += float(self._objective.distance(given, answer)) * count
                rows += count
                if self._objective.classifier:
                    agreed += float((float_tensors(given)[0].argmax(1) == float_tensors(answer)[0].argmax(1)).sum())
        far, agreed, rows = world.totals(far, agreed, rows)
        distance = far / rows if torch.isfinite(torch.tensor(far)) else float("inf")
        return Score(distance, agreed / rows if self._objective.classifier else None)


def _squared(given: Tensor, answer: Tensor, scale: float) -> Tensor:
    return (given.float() - answer.float()).square().mean() / scale


def _scale(answers: Sequence[Tensor]) -> float:
    """Variance of the original's output over a sample; 1 where it is constant."""
    values = torch.cat([answer.detach().double().flatten() for answer in answers])
    return float(values.var(correction=0)) or 1.0


@contextmanager
def _watched(model: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collects the outputs of modules, in the order of their calls."""
    seen: list[Tensor] = []

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append(output)

    handles = [model.get_submodule(name).register_forward_hook(note) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
