"""The command `recover`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from torch import nn

from convsurgeon.base import processes
from convsurgeon.base.errors import CalibrationError, LoadError
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


def run_recover(options: argparse.Namespace) -> object:
    """Train a converted model, export and print."""
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
        beside = Within(None, metric, options.better).resolve(result.original)
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
