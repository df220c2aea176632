"""The `recover` command."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from convsurgeon.base import processes as world
from convsurgeon.base.errors import LoadError
from convsurgeon.calibration.dataset import Calibration
from convsurgeon.calibration.images import Images
from convsurgeon.calibration.synthetic import synthesise
from convsurgeon.cli.bundles import add_export, check_output, export_bundle
from convsurgeon.cli.converting import print_result
from convsurgeon.cli.options import add_command, add_reading, group
from convsurgeon.cli.planning import add_planning
from convsurgeon.cli.reading import choices, images_of, metric_of, model_and_example, runtime_of, stages
from convsurgeon.conversion import Result, convert
from convsurgeon.distill.augment import Augment
from convsurgeon.distill.checkpoint import check_run
from convsurgeon.distill.recipe import Recipe
from convsurgeon.graph.capture import capture
from convsurgeon.graph.example import Example
from convsurgeon.planning.plan import Plan
from convsurgeon.planning.surgery import fill
from convsurgeon.recovery import recover


def add(commands: Any) -> None:
    """Adds the command."""
    command = add_command(commands, "recover", _recover, "train a converted model to answer as its original, no labels")
    add_planning(command)
    add_reading(command)
    _add_recovery(command)
    add_export(command)


def _recover(options: argparse.Namespace) -> None:
    _check(options)
    check_output(options)
    metric = metric_of(options)
    with world.joined():
        model, example = model_and_example(options)
        chosen = choices(options) | {"goal": options.budget, "runtime": runtime_of(options)}
        converted, result, images = _run(options, model, example, chosen)
        if world.rank():
            return
    with stages(options) as stage:
        if metric is not None:
            stage("metric")
            name, measured = metric
            original, before, after = map(measured, (result.original, converted.model, result.model))
            result = result.with_metric(f"{name}, as converted", original, before).with_metric(name, original, after)
        bundles = [export_bundle(options, result, images)] if options.out else []
    print_result(options, result, bundles)


def _add_recovery(command: argparse.ArgumentParser) -> None:
    """Options of `recover`, beside those of the model, the conversion and the bundle."""
    options = group(command, "recovery")
    options.add_argument(
        "--from", dest="bundle", metavar="DIR", help="a bundle that convert wrote; without it the model is converted"
    )
    options.add_argument(
        "--data",
        dest="calibrate",
        metavar="IMAGES",
        help="folder of images, .npy or .npz: what is learned from; made up if not given",
    )
    options.add_argument("--epochs", type=float, help="passes over the images (default 20, or what 400 steps take)")
    options.add_argument("--batch-size", type=int, help="of all processes together (default: by the images)")
    options.add_argument("--lr", type=float, help="highest learning rate (default: the best of short trials)")
    options.add_argument("--flip", action="store_true", help="mirror images at random")
    options.add_argument("--shift", type=int, default=0, metavar="PIXELS", help="shift them by up to so much")
    options.add_argument("--run", dest="folder", metavar="DIR", help="folder for checkpoints and a log")
    options.add_argument("--resume", action="store_true", help="go on with the run in that folder, if there is one")
    options.add_argument("--save-every", type=int, default=100, metavar="STEPS", help="between checkpoints (100)")


def _run(
    options: argparse.Namespace, model: nn.Module, example: Example, chosen: dict[str, Any]
) -> tuple[Result, Result, Images | Calibration]:
    """Converts or takes up a bundle, then trains; gives the conversion, what came of it, and the images.

    Args:
        options: parsed.
        model: the original, with its weights.
        example: its inputs.
        chosen: forms, policy and budget.
    """
    images = _images(options, model, example)
    quiet = {"seed": options.seed, "progress": not options.json}
    if options.bundle:
        converted = _taken_up(Path(options.bundle), model, example)
    else:
        converted = convert(model, example, **chosen, calibration=images, **quiet)
    names = ("epochs", "batch_size", "lr", "precision", "save_every", "seed")
    augment = Augment(options.flip, options.shift) if options.flip or options.shift else None
    recipe = Recipe(transform=augment, **{name: getattr(options, name) for name in names})
    batches: Any = dataclasses.replace(images, limit=None) if isinstance(images, Images) else None
    if isinstance(images, Calibration):
        batches = [*images.fitted, *images.held_back]
    how = {"run": options.folder, "resume": options.resume, "progress": not options.json}
    return converted, recover(converted, batches, recipe=recipe, **how), images


def _check(options: argparse.Namespace) -> None:
    """Refuses what cannot work before any work is done.

    Raises:
        LoadError: the bundle has no plan or no weights.
        WriteError: the folder of the run holds one already.
        RecoveryError: `--resume` without a folder.
    """
    check_run(options.folder, options.resume)
    for name in ("plan.json", "weights.safetensors") if options.bundle else ():
        if not (Path(options.bundle) / name).is_file():
            raise LoadError(f"{options.bundle}: holds no {name}; pass a folder that convert --out wrote")


def _images(options: argparse.Namespace, model: nn.Module, example: Example) -> Any:
    """Return the images that the command line names, or synthetic ones."""
    if options.calibrate:
        return images_of(options, options.images)
    scale = {"mean": options.mean or None, "std": options.std or None}
    return synthesise(capture(model, example), options.images, seed=options.seed, **scale, progress=not options.json)


def _taken_up(bundle: Path, model: nn.Module, example: Example) -> Result:
    from convsurgeon.bundle.loading import check_bundle

    check_bundle(bundle, model)
    result = convert(model, example, forms=Plan.load(bundle / "plan.json"), calibration=False)
    fill(result.model, model, bundle / "weights.safetensors")
    return result
