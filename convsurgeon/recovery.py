"""`recover`: a converted model learns, without labels, to answer as its original does."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from convsurgeon.base import processes
from convsurgeon.base.errors import RecoveryError, expect
from convsurgeon.base.normal import in_normal_mode
from convsurgeon.base.progress import bar
from convsurgeon.calibration.synthetic import synthesise
from convsurgeon.distill.batches import Stream, kept_chance, split, training_set
from convsurgeon.distill.checkpoint import RunFolder, check_run
from convsurgeon.distill.distiller import Distiller
from convsurgeon.distill.loss import OutputJudge, answer_loss
from convsurgeon.distill.recipe import Recipe
from convsurgeon.distill.record import Recovery, Score
from convsurgeon.graph.capture import capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.state import keep_state, restore_state
from convsurgeon.graph.subgraphs import operators_without_gradient
from convsurgeon.int8.target import Target
from convsurgeon.int8.training import as_exported, learn_rounded
from convsurgeon.onnxnet.network import OnnxNetwork
from convsurgeon.result import Result
from convsurgeon.runtime.threads import only_free_cores

SYNTHETIC = 1024
"""Images that are made up at most."""
SAMPLE = 2
"""Held-back batches that the variances of the outputs are measured on."""
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
_TRIAL_STEPS, _LEAST_TRIAL_STEPS = 40, 8
_TRIAL_SHARE = 0.025
"""Of a run's steps, for the trial of each rate; no more than `_TRIAL_STEPS`."""
DEFAULT = Recipe()
JUDGED = 10
"""Times that a run is judged at least."""


@in_normal_mode
def recover(
    result: Result,
    images: object = None,
    *,
    recipe: Recipe = DEFAULT,
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Result:
    """Fine-tune a converted model on the original's outputs; it needs no labels and never ends worse than it began.

    Of all states that were judged, the one with the least error on held-back images is returned, among those whose
    top-1 agreement is not below that at the start; if there is none, the model as it was. Images in memory that the
    conversion held back are held back again: nothing was fitted to them. Under `torchrun` every process takes its share
    of every batch.

    Args:
        result: of `convert` or an earlier `recover`; it is not changed.
        images: a tensor or array, a map-style data set, a `DataLoader`, or an iterable of batches. Of a loader the data
            set, the collate function and the number of workers are used. If not given, the synthetic images of the
            conversion, or new ones.
        recipe: the settings.
        run: a folder for checkpoints and a log.
        resume: go on from the checkpoint in `run`, to the bit on a CPU; begin anew where there is none.
        progress: whether to show bars.

    Raises:
        RecoveryError: nothing was rewritten or is trainable, or the checkpoint is another run's.
        CalibrationError: the images are too few, of another shape, or not finite.
        WriteError: the folder holds a run already, or cannot be written.
        KeyboardInterrupt: Ctrl-C was pressed; it says from which step the run can be resumed.

    Returns:
        A new result with the recovered model and a report of it.
    """
    expect(result, Result, "recover: expected the result of convert", RecoveryError)
    expect(recipe, Recipe, "recover: expected a Recipe", RecoveryError)
    recipe = dataclasses.replace(recipe, precision=recipe.precision or result.precision)
    _check(result)
    check_run(run, resume)
    threads = nullcontext() if run else only_free_cores()  # a run is resumed to the bit, which the threads decide
    with kept_chance(), keep_state(result.original), threads:
        given = _synthetic(result, recipe, progress) if images is None else images
        job = _Job(result, given, recipe)
        folder = None if run is None else RunFolder(run, _settings(result, job))
        done = _train(job, folder, progress)
    model = copy.deepcopy(result.model)
    model.load_state_dict(job.student.state_dict())
    values = job.judge.compare(model)
    report = dataclasses.replace(result.report, fidelity=values, recovery=done, metrics=())
    runtime = result.runtime
    if recipe.precision is not None and recipe.precision != runtime.precision:
        runtime = dataclasses.replace(runtime, precision=recipe.precision, table=None)
    found = dataclasses.replace(result, model=model, report=report, runtime=runtime)
    return found if found.within is None or found.within.metric is None else found.judged_by(found.within)


def _check(result: Result) -> None:
    if not result.changes:
        raise RecoveryError("recover: no conv of this result was rewritten, so there is nothing to win back")
    if any(parameter.is_meta for parameter in result.model.parameters()):
        raise RecoveryError("recover: the model is on the meta device and has no values; load its weights first")
    if isinstance(result.model, OnnxNetwork) and (kinds := operators_without_gradient(result.original, result.example)):
        raise RecoveryError(
            f"recover: {', '.join(kinds[:4])} of the file run in onnxruntime, which gives no gradients; "
            "cut the graph before them (onnx.utils.extract_model), recover that part, or take more images in convert"
        )


def _synthetic(result: Result, recipe: Recipe, progress: bool) -> list[Example]:
    """Return images to learn from where none are given."""
    made = result.made_up
    if made is None:
        seen = capture(result.original, result.example)
        made = synthesise(seen, recipe.limit or SYNTHETIC, seed=recipe.seed, progress=progress)
    return [*made.fitted, *made.held_back]


class _Job:
    """What a recovery works with: a copy of the converted model, the images, the loss and the judge."""

    def __init__(self, result: Result, images: object, recipe: Recipe) -> None:
        pool = training_set(images, result.example, recipe.limit)
        count = len(pool) if recipe.limit is None else min(len(pool), recipe.limit)
        unseen = pool.find(result.held_back)  # on others the start looks better than it is: it was fitted to them
        numbers, held = split(count, recipe.hold_back, recipe.seed, unseen)
        self.recipe, self.images = recipe, count
        self.stream = Stream(pool, numbers, recipe.batch(len(numbers)), recipe.seed, recipe.transform)
        self.held_back = pool.take(held.tolist(), self.stream.batch_size)
        sample = self.held_back[:SAMPLE]
        self.student = _student(result, sample, int8=recipe.precision == "int8")
        self.parameters = _trained(self.student, list(result.changes))
        self._loss = answer_loss(result.original, self.student, sample, recipe.loss)
        self.judge = OutputJudge(result.original, self.held_back, recipe.loss)
        self.steps = recipe.steps(self.stream.epoch)
        self.start = self.score(self.student)

    def score(self, model: nn.Module) -> Score:
        """Return the score that the first process finds, in all of them: decisions must not differ."""
        return processes.shared(lambda: self.judge.score(model))

    def distiller(self, rate: float, steps: int) -> Distiller:
        """Return a fresh run of the model as it is."""
        return Distiller(
            self.student,
            self.parameters,
            loss=self._loss,
            judge=self.score,
            start=self.start,
            steps=steps,
            rate=rate,
            seed=self.recipe.seed,
            judge_every=max(1, min(self.stream.epoch, steps // JUDGED or 1)),
            shared=True,
        )


def _student(result: Result, sample: Sequence[Example], int8: bool) -> nn.Module:
    """Return a working copy of the converted model; one that is to be int8 rounds in every forward pass."""
    model = copy.deepcopy(result.model)
    processes.agree(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if int8:
        target = Target.onnxruntime()
        learn_rounded(model, sample, target, as_exported(result.model, sample, target))
    return model


def _trained(model: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    """Return the parameters that move: all trainable ones, but of an ONNX file only those of the rewritten convs."""
    if isinstance(model, OnnxNetwork):
        moving = {id(parameter) for name in names for parameter in model.get_submodule(name).parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in moving)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise RecoveryError("recover: every parameter is frozen; call requires_grad_() on those that may move")
    return trained


def _settings(result: Result, job: _Job) -> dict[str, Any]:
    """Return what a run must have been started with to be resumed."""
    values = {field.name: getattr(job.recipe, field.name) for field in dataclasses.fields(job.recipe)}
    named = {name: _name(value) if callable(value) else value for name, value in values.items()}
    planned = json.dumps(result.plan.to_dict(), sort_keys=True).encode()
    return {**named, "images": job.images, "plan": hashlib.sha256(planned).hexdigest()[:16]}


def _name(part: Callable[..., Any]) -> str:
    return repr(part) if dataclasses.is_dataclass(part) else getattr(part, "__qualname__", type(part).__name__)


def _train(job: _Job, folder: RunFolder | None, progress: bool) -> Recovery:
    """Train the student, or go on training it, and leave the best weights in it."""
    stream = job.stream
    held = None if folder is None else folder.load()
    lr, trials = _rate(job, progress) if held is None else (held["lr"], held["trials"])
    distiller = job.distiller(lr, job.steps)
    ended = "" if held is None or folder is None else folder.restore(distiller, held)
    saved = distiller.step

    def save(ended: str = "") -> None:
        nonlocal saved
        if folder is not None and processes.rank() == 0:
            folder.save({"lr": lr, "trials": trials, "ended": ended, **distiller.state()}, distiller.rows)
            saved = distiller.step

    if not ended:
        try:
            save()
            batches = stream.steps(distiller.step, job.steps)
            every = job.recipe.save_every
            ended = distiller.run(batches, desc="recovering", progress=progress, save=save, save_every=every)
        except KeyboardInterrupt as error:
            where = "" if folder is None else f"step {saved} of {job.steps} is saved in {folder.path}"
            raise KeyboardInterrupt(where and f"{where}; resume goes on from there") from error
        save(ended)
    return Recovery(
        before=distiller.start, after=distiller.best, best_step=distiller.best_step, steps=job.steps,
        batch_size=stream.batch_size, images=len(stream.numbers), held_back=job.images - len(stream.numbers), lr=lr,
        seconds=distiller.seconds, ended=ended, trials=tuple(trials), rows=tuple(distiller.rows),
    )  # fmt: skip


def _rate(job: _Job, progress: bool) -> tuple[float, list[tuple[float, float]]]:
    """Return the learning rate, and (rate, error) of the trials: short runs from the same start, over the same batches.

    Few steps favour a slow rate, and a rate that is too fast is taken back after a quarter. So the next faster rate
    than the best of the trials is taken.
    """
    if job.recipe.lr is not None:
        return job.recipe.lr, []
    each = min(_TRIAL_STEPS, max(_LEAST_TRIAL_STEPS, round(_TRIAL_SHARE * job.steps)))
    trials: list[tuple[float, float]] = []
    with bar(total=len(RATES) * each, desc="learning rates", unit="step", show=progress) as shown:
        for rate in RATES:
            trial = job.distiller(rate, each)
            try:
                for batch in job.stream.steps(0, each):
                    trial.advance(batch)
                    shown.update()
                trials.append((rate, job.score(trial.student).error))
            except FloatingPointError:  # the loss is not finite
                trials.append((rate, math.inf))
            restore_state(trial.student, trial.weights)
    best = min(trials, key=lambda pair: pair[1])[0]
    return min((rate for rate in RATES if rate > best), default=best), trials
