"""What a converted model is taught, and how it is judged: by the error of its outputs against the original's.

The squared error of logits is used, too (Ba & Caruana 2014): a converted model begins near its original, and every
logit says more than the few that a softmax leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from convsurgeon.base.errors import CalibrationError
from convsurgeon.calibration.dataset import images_in
from convsurgeon.distill.record import Score
from convsurgeon.fit.fidelity import Fidelity, compare_answers
from convsurgeon.graph.decisions import Decisions
from convsurgeon.graph.example import Example
from convsurgeon.graph.output_error import OutputError, relative_error, scales
from convsurgeon.graph.outputs import Answer, answer, outputs
from convsurgeon.graph.state import evaluating, undisturbed

Loss = Callable[[Any, Any], Tensor]
"""(output of the converted model, output of the original) -> mean over the rows."""


def answer_loss(
    original: nn.Module, student: nn.Module, sample: Sequence[Example], loss: Loss | None
) -> Callable[[Example], Tensor]:
    """Return the loss of a batch, a mean over its images: how far the student's outputs are from the original's.

    That is the user's `loss`, or the error of the outputs, whose variances are measured on the batches of `sample`.
    """
    own = scales([outputs(original, batch) for batch in sample])

    def of_batch(batch: Example) -> Tensor:
        with evaluating(original):
            wanted = answer(original, batch)
        found = answer(student, batch)
        if loss is not None:
            return loss(found.output, wanted.output)
        return relative_error(found.judged, wanted.judged, own)

    return of_batch


class OutputJudge:
    """Scores models by their outputs on held-back batches: by the user's `loss`, or by the error of the outputs."""

    def __init__(self, original: nn.Module, batches: Sequence[Example], loss: Loss | None = None) -> None:
        self._original, self.batches, self._loss = original, batches, loss
        self.images = sum(map(images_in, batches))

    @cached_property
    def answers(self) -> list[Answer]:
        """Return what the original gives for every batch."""
        with undisturbed(self._original):
            return [answer(self._original, batch) for batch in self.batches]

    def score(self, model: nn.Module) -> Score:
        """Return the error, and what becomes of the original's decisions."""
        error, decisions, own = OutputError(), Decisions(), 0.0
        with evaluating(model):
            for batch, wanted in zip(self.batches, self.answers, strict=True):
                found = answer(model, batch)
                error.add(wanted.judged, found.judged)
                if self._loss is not None:
                    own += float(self._loss(found.output, wanted.output)) * images_in(batch) / self.images
                decisions.add(wanted.judged, found.judged)
        value, doubt = error.with_doubt() if self._loss is None else (own, 0.0)
        value = value if math.isfinite(value) else math.inf
        lost, unsure = decisions.with_doubt()
        return Score(value, decisions.agreement, decisions.overlap, lost, (doubt, unsure))

    def compare(self, model: nn.Module) -> Fidelity | None:
        """Return the fidelity of a model, or the original itself, on images as large as the first; None if unknown."""
        sizes = [[one.shape[1:] for one in batch.tensors()] for batch in self.batches]
        alike = [place for place, size in enumerate(sizes) if size == sizes[0]]
        batches = [self.batches[place] for place in alike]
        try:
            wanted = [self.answers[place] for place in alike]
            if model is self._original:
                found = [one.judged for one in wanted]
            else:
                with undisturbed(self._original):  # a closure that the copy holds may still run its modules
                    found = [outputs(model, batch) for batch in batches]
            return compare_answers(batches, wanted, found)
        except CalibrationError:  # no floating-point output, or sizes that depend on values
            return None
