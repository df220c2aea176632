"""`recover`: a converted model learns, without labels, to answer as its original does."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.base import processes as world
from convsurgeon.base.errors import RecoveryError
from convsurgeon.base.precision import Precision
from convsurgeon.calibration.synthetic import synthesise
from convsurgeon.conversion import Result, compare_outputs
from convsurgeon.distill.batches import Batch, Stream, images_from, kept_chance, split
from convsurgeon.distill.checkpoint import RunFolder, check_run
from convsurgeon.distill.history import Log
from convsurgeon.distill.learning_rate import best_rate
from convsurgeon.distill.loop import train
from convsurgeon.distill.loss import Judge, Loss, Objective
from convsurgeon.distill.recipe import Recipe
from convsurgeon.distill.record import Recovery
from convsurgeon.distill.training import (
    OptimizerFactory,
    SchedulerFactory,
    Training,
    Transform,
    as_channels_last,
    unheard,
)
from convsurgeon.graph.capture import capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.state import keep_state
from convsurgeon.graph.subgraphs import operators_without_gradient
from convsurgeon.int8.target import Target
from convsurgeon.int8.training import as_exported, learn_rounded
from convsurgeon.onnxnet.network import OnnxNetwork

_MADE_UP = 1024
"""Images that are made up at most."""

SAMPLE = 2
"""Held-back batches that the scales of the loss are measured on."""


def recover(
    result: Result,
    batches: object = None,
    *,
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    transform: Transform | None = None,
    features: float = 0.0,
    loss: Loss | None = None,
    label_loss: Loss | None = None,
    label_weight: float = 1.0,
    optimizer: str | OptimizerFactory = "soap",
    scheduler: SchedulerFactory | None = None,
    warm_up: float = 0.05,
    clip: float | None = None,
    norms: str = "frozen",
    precision: Precision | None = None,
    amp: bool = False,
    channels_last: bool = True,
    hold_back: int = 512,
    images: int | None = None,
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
    save_every: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Fine-tunes a converted model on the original's outputs; needs no labels, and never ends worse than it began.

    Of all states that were judged, the one nearest to the original on held-back images is returned, among those whose
    top-1 agreement is no less than before; if there is none, the model as it was. A quarter of the steps in which no
    nearer state was found is taken back, and the next begins from the best one at a fifth of the rate; two in a row end
    the run. Under `torchrun` the work is shared: the batches are those that one process would have seen.

    Args:
        result: of `convert`, `carry_out` or an earlier `recover`; it is not changed.
        batches: images: a tensor or array, a map-style data set, a `DataLoader`, or an iterable of batches. Of a loader
            the data set, the collate function and the number of workers are used. If not given, the images that were
            made up for the conversion, or new ones (see `synthetic_images`).
        epochs: passes over the images; by default 20, and more where that is less than 400 steps.
        batch_size: of all processes together; by default a 16th of the images, from 8 to 64.
        lr: the highest learning rate; by default one above the best of four in trials that take a tenth of the steps.
        transform: inputs -> inputs, for augmentation; it gets the tensor of a model that takes one, an `Example`
            otherwise. Original and converted model see the same result. See `Augment`.
        features: weight of the mean relative error of the rewritten convs' own outputs in the loss.
        loss: (converted's output, original's output) -> mean over the rows. By default the squared error over the
            variance of the original's output.
        label_loss: (converted's output, labels) -> mean over the rows, added for those who have labels.
        label_weight: its weight.
        optimizer: `"soap"` (see `soap`) or `"adam"`, with `lr`; or parameters -> optimiser, whose rate is yours, too.
        scheduler: (optimiser, steps) -> schedule, stepped after every step; by default a linear warm-up over a share
            `warm_up` of the steps and half a cosine down to zero.
        warm_up: see `scheduler`.
        clip: largest norm of the gradient; None for no limit.
        norms: `"frozen"` batch-norm statistics, or `"updated"` ones.
        precision: of the file that is to ship: with `"int8"` the model computes in training and on held-back images as
            that file will, so that it learns to bear the rounding (see `rounding`). By default that of the conversion.
        amp: run in bfloat16 where torch's autocast says it may.
        channels_last: train in the memory format that torch's convs are fastest in; the result has its own again.
        hold_back: most images to hold back for judging; a tenth of them where that is less.
        images: most images to use; of an iterable no more are read.
        run: a folder for checkpoints, log and plot. With it Ctrl-C saves, and then ends the process as ever.
        resume: go on with what lies in `run`, to the bit on a CPU; begins anew where nothing does.
        save_every: steps between checkpoints.
        seed: of the order, the images held back, and the random numbers of every step.
        progress: whether to show a bar.

    Raises:
        RecoveryError: a setting is out of range, nothing was rewritten or is trainable, or the run is another's.
        CalibrationError: the images are too few, of another shape, or not finite.
        WriteError: the folder holds a run already, or cannot be written.
        KeyboardInterrupt: after saving, where there is a folder.

    Returns:
        A new result with the recovered model and a report of it.
    """
    named, maker = (optimizer, None) if isinstance(optimizer, str) else (Recipe.optimizer, optimizer)
    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        optimizer=named,
        warm_up=warm_up,
        norms=norms,
        precision=result.precision if precision is None else precision,
        features=features,
        label_weight=label_weight,
        clip=clip,
        amp=amp,
        channels_last=channels_last,
        hold_back=hold_back,
        images=images,
        save_every=save_every,
        seed=seed,
    )
    own = Own(loss, label_loss, maker, scheduler, transform)
    _check(result, recipe, own)
    check_run(run, resume)
    folder = None if run is None else RunFolder(run)
    with kept_chance(), keep_state(result.original), nullcontext() if folder is None else folder.owned():
        given = _made_up(result, recipe, progress) if batches is None else batches
        setup = _set_up(result, given, recipe, own)
        weights, done = _carried_out(setup, _identity(result, setup), folder, progress)
    return _with(result, weights, done, setup.shown, recipe.precision)


@dataclasses.dataclass(frozen=True)
class Own:
    """What a user may bring in place of the defaults."""

    loss: Loss | None = None
    label_loss: Loss | None = None
    optimizer: OptimizerFactory | None = None
    scheduler: SchedulerFactory | None = None
    transform: Transform | None = None


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that a run needs: a working copy of the converted model, its data, its loss and its judge."""

    model: nn.Module
    parameters: tuple[nn.Parameter, ...]
    stream: Stream
    held_back: int
    shown: Example
    objective: Objective
    judge: Judge
    recipe: Recipe
    own: Own

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.recipe.steps(self.stream.epoch)

    def training(self, lr: float, steps: int) -> Training:
        """A fresh run of the model as it is."""
        own = self.own
        return Training(
            *(self.model, self.objective, self.recipe, lr, steps, self.parameters),
            *(own.optimizer, own.scheduler, own.transform),
        )


def _check(result: Result, recipe: Recipe, own: Own) -> None:
    if recipe.lr is not None and own.optimizer is not None:
        raise RecoveryError("recover: lr is for the optimiser that is made here; set the rate in your optimizer alone")
    if not result.changes:
        raise RecoveryError("recover: no conv of this result was rewritten, so there is nothing to win back")
    if any(parameter.is_meta for parameter in result.model.parameters()):
        raise RecoveryError("recover: the model is on the meta device and has no values; load its weights first")

    if isinstance(result.model, OnnxNetwork):
        _check_file(result, recipe)


def _check_file(result: Result, recipe: Recipe) -> None:
    """A file is for inference: its norms keep what they know, and training needs gradients all the way."""
    if recipe.norms != "frozen":
        raise RecoveryError("recover: an ONNX file keeps its batch-norm statistics; leave norms as it is")
    kinds = operators_without_gradient(result.original, result.example)
    if kinds:
        raise RecoveryError(
            f"recover: {', '.join(kinds[:4])} of the file run in onnxruntime, which gives no gradients; "
            "cut the graph before them (onnx.utils.extract_model), recover that part, or take more images in convert"
        )


def _made_up(result: Result, recipe: Recipe, progress: bool) -> list[Example]:
    """Images to learn from where none are given."""
    made = result.made_up
    if made is None:
        seen = capture(result.original, result.example)
        made = synthesise(seen, recipe.images or _MADE_UP, seed=recipe.seed, progress=progress)
    return [*made.fitted, *made.held_back]


def _set_up(result: Result, batches: object, recipe: Recipe, own: Own) -> Setup:
    pool = images_from(batches, result.example, recipe.images)
    count = len(pool) if recipe.images is None else min(len(pool), recipe.images)
    numbers, held = split(count, recipe.hold_back, recipe.seed)
    stream = Stream(pool, numbers, recipe.batch(len(numbers)), recipe.seed)
    held_back = [_laid_out(batch, recipe) for batch in pool.take(held.tolist(), stream.batch_size)]
    names = list(result.changes)
    settings = (own.loss, recipe.features, own.label_loss, recipe.label_weight)
    objective = Objective(result.original, names, held_back[:SAMPLE], *settings)
    judge = Judge(result.original, held_back, objective)
    model = copy.deepcopy(result.model)
    world.agree(model)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.precision == "int8":
        target = Target.onnxruntime()
        learn_rounded(model, held_back[:SAMPLE], target, as_exported(result.model, held_back[:SAMPLE], target))
    parameters = _trained(model, names)
    setup = Setup(model, parameters, stream, len(held), held_back[0].example, objective, judge, recipe, own)
    if world.size() > 1:
        for parameter in unheard(setup.training(0.0, 1), next(stream.steps(0, 1))):
            parameter.requires_grad_(False)
    return setup


def _laid_out(batch: Batch, recipe: Recipe) -> Batch:
    return Batch(batch.example.map(as_channels_last), batch.labels) if recipe.channels_last else batch


def _trained(model: nn.Module, names: list[str]) -> tuple[nn.Parameter, ...]:
    """The parameters that move: all that are trainable, but of a file only those that it has not of its own."""
    if isinstance(model, OnnxNetwork):
        moving = {id(parameter) for name in names for parameter in model.get_submodule(name).parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in moving)
    trained = tuple(parameter for parameter in model.parameters() if parameter.requires_grad)
    if not trained:
        raise RecoveryError("recover: every parameter is frozen; call requires_grad_() on what may move")
    return trained


def _identity(result: Result, setup: Setup) -> dict[str, Any]:
    """What a run must have been started with to be gone on with."""
    settings = dataclasses.asdict(setup.recipe)
    own = {name: _named(value) for name, value in vars(setup.own).items() if value is not None or name not in settings}
    planned = json.dumps(result.plan.to_dict(), sort_keys=True).encode()
    images = {"images": len(setup.stream.numbers) + setup.held_back}
    plan = {"plan": hashlib.sha256(planned).hexdigest()[:16]}
    return settings | own | images | plan


def _named(part: Any) -> str:
    """A user's own part, as well as it can be told from another."""
    return repr(part) if dataclasses.is_dataclass(part) else getattr(part, "__qualname__", type(part).__name__)


def _carried_out(
    setup: Setup, run: dict[str, Any], folder: RunFolder | None, progress: bool
) -> tuple[dict[str, Tensor], Recovery]:
    """Trains, or goes on training; gives the best weights."""
    held = None if folder is None else folder.load(run)
    log = Log(setup.model, setup.judge.score(setup.model))
    if held is None:
        lr, trials = _rate(setup, progress)
    else:
        lr, trials = held["lr"], tuple(map(tuple, held["trials"]))
    training = setup.training(lr, setup.steps)
    if held is not None and folder is not None:
        try:
            training.load_state(held)
            log.load_state(held["log"])
        except Exception as error:  # torch raises a dozen kinds here
            raise folder.refused(error) from error
    fixed = {"run": run, "lr": lr, "trials": [list(trial) for trial in trials]}
    ended = "" if held is None else held["ended"]
    if not ended:
        ended = train(training, log, setup.stream, setup.judge, folder, fixed, progress)
    if folder is not None and world.rank() == 0:
        folder.draw(log.rows)
    counts = (setup.steps, setup.stream.epoch, setup.stream.batch_size, len(setup.stream.numbers), setup.held_back)
    scores = (log.start, log.best, log.best_step)
    return log.weights, Recovery(*scores, *counts, lr, log.seconds, ended, trials, tuple(log.rows))


def _rate(setup: Setup, progress: bool) -> tuple[float, tuple[tuple[float, float], ...]]:
    if setup.recipe.lr is not None:
        return setup.recipe.lr, ()
    if setup.own.optimizer is not None:
        return 0.0, ()
    return best_rate(setup.model, setup.training, setup.stream, setup.judge, setup.steps, progress)


def _with(result: Result, weights: dict[str, Tensor], done: Recovery, shown: Example, precision: Precision) -> Result:
    """The result with the recovered weights in a copy of its model, device, memory format and mode as they were."""
    model = copy.deepcopy(result.model)
    model.load_state_dict(weights)
    values = compare_outputs(result.original, model, shown)
    report = dataclasses.replace(result.report, fidelity=values, recovery=done, metrics=())
    runtime = result.runtime
    if runtime.precision != precision:
        runtime = dataclasses.replace(runtime, precision=precision, table=None)
    return dataclasses.replace(result, model=model, report=report, runtime=runtime)
