"""The command `recover`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from convsurgeon.base import processes
from convsurgeon.base.errors import CalibrationError, LoadError
from convsurgeon.base.precision import PRECISIONS
from convsurgeon.cli import options as shared
from convsurgeon.cli.output import check_output, write_output
from convsurgeon.cli.reading import read_images, read_metric, read_model
from convsurgeon.conversion import convert
from convsurgeon.distill.checkpoint import check_run
from convsurgeon.distill.recipe import Augment, Recipe
from convsurgeon.graph.example import Example
from convsurgeon.planning.plan import Plan
from convsurgeon.planning.surgery import fill
from convsurgeon.recovery import recover
from convsurgeon.result import Result
from convsurgeon.runtime.runtime import Runtime
from convsurgeon.search.goal import Within
from convsurgeon.search.metric import measure


def add(commands: Any, name: str) -> None:
    """Add the command."""
    net = "net.py:factory --weights net.safetensors --input 1x3x32x32 --from lighter/ --data photos/"
    examples = [f"{net} --out better/", f"{net} --flip --shift 4 --run run/ --resume --out better/"]
    usual = ("weights", "input", "bundle", "images", "mean", "std", "epochs", "run_folder", "resume", "metric")
    command = shared.add_command(commands, name, _recover, examples, usual)
    shared.add_model(command)
    command.add_argument("--from", dest="bundle", metavar="DIR", required=True, help="what `convert --out` wrote")
    shared.add_images(command, "--data", "images to learn from; synthetic ones if not given")
    options = command.add_argument_group("training")
    options.add_argument("--epochs", type=float, help="passes over the images (default 20, or what 400 steps take)")
    options.add_argument("--batch-size", type=int, help="of all processes together (default: by the images)")
    options.add_argument("--lr", type=float, help="highest learning rate (default: the best of short trials)")
    options.add_argument("--flip", action="store_true", help="mirror images at random")
    options.add_argument("--shift", type=int, default=0, metavar="PIXELS", help="shift them by up to so many pixels")
    options.add_argument("--precision", choices=PRECISIONS, help="int8: learn through the rounding of the int8 file")
    options.add_argument("--run", metavar="DIR", dest="run_folder", help="for checkpoints and a log")
    options.add_argument("--resume", action="store_true", help="go on with the run in that folder, if there is one")
    options.add_argument("--save-every", type=int, default=100, metavar="STEPS", help="between checkpoints (100)")
    shared.add_seed(command)
    shared.add_metric(command)
    command.add_argument("--threads", type=int, help="of onnxruntime when timing (default 1 and all cores)")
    shared.add_provider(command)
    shared.add_bundle(command)
    shared.add_printing(command)


def _recover(options: argparse.Namespace) -> object:
    if (options.mean or options.std) and not options.images:
        raise CalibrationError("--mean, --std: say how the images of --data are read; add --data, or leave them out")
    images = read_images(options) if options.images else None
    check_run(options.run_folder, options.resume)
    check_output(options, images)
    metric = read_metric(options)
    recipe = Recipe(
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        transform=Augment(options.flip, options.shift) if options.flip or options.shift else None,
        precision=options.precision,
        save_every=options.save_every,
        seed=options.seed,
    )
    with processes.joined():
        converted = dataclasses.replace(
            _read_bundle(Path(options.bundle), *read_model(options)),
            runtime=Runtime(provider=options.provider, options=dict(options.options)),
        )
        result = recover(
            converted,
            images,
            recipe=recipe,
            run=options.run_folder,
            resume=options.resume,
            progress=not options.json,
        )
        if processes.rank():
            return None
    if metric is not None:
        beside = Within(None, metric, options.better).resolve(result.original, ())
        assert beside.before is not None
        was = measure(metric, converted.model)
        result = result.with_metric(f"{beside.name}, as converted", beside.before, was).judged_by(beside)
    return write_output(options, result, images)


def _read_bundle(bundle: Path, model: nn.Module, example: Example) -> Result:
    """Return the conversion that a bundle holds."""
    from convsurgeon.bundle.loading import check_bundle

    for name in ("plan.json", "weights.safetensors"):
        if not (bundle / name).is_file():
            raise LoadError(f"{bundle}: holds no {name}; pass a folder that convert --out wrote")
    check_bundle(bundle, model)
    result = convert(model, example, forms=Plan.load(bundle / "plan.json"), calibration=False)
    fill(result.model, model, bundle / "weights.safetensors")
    return result
