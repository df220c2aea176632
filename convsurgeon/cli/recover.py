"""The part of the command line that trains a converted model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import LoadError
from convsurgeon.conversion import Result, carry_out, convert
from convsurgeon.fit.images import load_images
from convsurgeon.graph.example import Example
from convsurgeon.graph.load import load_weights
from convsurgeon.plan.plan import Plan
from convsurgeon.recover.augment import Augment
from convsurgeon.recover.checkpoint import check_run
from convsurgeon.recover.recipe import OPTIMIZERS
from convsurgeon.recover.recover import recover

_EVERY = 1 << 31


def add_recovery(command: argparse.ArgumentParser) -> None:
    """Options of `recover`, beside those of the model, the conversion and the bundle."""
    command.add_argument(
        "--from", dest="bundle", metavar="DIR", help="a bundle that convert wrote; without it the model is converted"
    )
    command.add_argument(
        "--data",
        dest="calibrate",
        required=True,
        metavar="IMAGES",
        help="folder of images, .npy or .npz: what is learned from",
    )
    command.add_argument("--epochs", type=float, default=20, help="passes over the images (default 20)")
    command.add_argument("--batch-size", type=int, default=64, help="of all processes together (default 64)")
    command.add_argument("--lr", type=float, help="highest learning rate (default: the best of short trials)")
    command.add_argument("--optimizer", choices=list(OPTIMIZERS), default="soap", help="that moves them (default soap)")
    command.add_argument("--flip", action="store_true", help="mirror images at random")
    command.add_argument("--shift", type=int, default=0, metavar="PIXELS", help="shift them by up to so much")
    command.add_argument("--features", type=float, default=0.0, help="weight of the rewritten layers' own outputs")
    command.add_argument("--parameters", choices=("all", "rewritten"), default="all", help="that may move")
    command.add_argument(
        "--norms", choices=("frozen", "updated"), default="frozen", help="batch-norm statistics (default frozen)"
    )
    command.add_argument("--ema", type=float, metavar="DECAY", help="also judge a moving average of the weights")
    command.add_argument("--patience", type=int, help="end after so many epochs without a better one")
    command.add_argument("--amp", action="store_true", help="train in bfloat16 where autocast allows")
    command.add_argument(
        "--run", dest="folder", metavar="DIR", help="for checkpoints, log and plot; Ctrl-C saves there"
    )
    command.add_argument("--resume", action="store_true", help="go on with the run in that folder, if there is one")
    command.add_argument("--save-every", type=int, default=100, metavar="STEPS", help="between checkpoints (100)")


def run_recovery(
    options: argparse.Namespace, model: nn.Module, example: Example, choices: dict[str, Any], late: Any
) -> tuple[Result, Result, Tensor]:
    """Converts or takes up a bundle, then trains; gives the conversion, what came of it, and the images.

    Args:
        options: parsed.
        model: the original, with its weights.
        example: its inputs.
        choices: forms, policy and budget.
        late: gives the latencies that a budget needs, once they are needed.
    """
    images = _images(options, example)
    quiet = {"seed": options.seed, "progress": not options.json}
    if options.bundle:
        converted = _taken_up(Path(options.bundle), model, example)
    else:
        converted = convert(model, example, **choices, **late(), calibration=images, images=options.images, **quiet)
    names = (
        *("epochs", "batch_size", "lr", "optimizer", "features", "parameters", "norms"),
        *("ema", "patience", "amp", "save_every"),
    )
    settings = {name: getattr(options, name) for name in names}
    settings["transform"] = Augment(options.flip, options.shift) if options.flip or options.shift else None
    return converted, recover(converted, images, run=options.folder, resume=options.resume, **settings, **quiet), images


def check_recovery(options: argparse.Namespace) -> None:
    """Refuses what cannot work before any work is done.

    Raises:
        LoadError: the bundle has no plan or no weights.
        OutputError: the folder of the run holds one already.
        RecoveryError: `--resume` without a folder.
    """
    check_run(options.folder, options.resume)
    for name in ("plan.json", "weights.safetensors") if options.bundle else ():
        if not (Path(options.bundle) / name).is_file():
            raise LoadError(f"{options.bundle}: holds no {name}; pass a folder that convert --out wrote")


def _images(options: argparse.Namespace, example: Example) -> Tensor:
    """All images, in an order of their own: a folder's first thousand may be all of one class."""
    images = load_images(options.calibrate, tuple(example.tensors()[0].shape), options.mean, options.std, _EVERY)
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed))]


def _taken_up(bundle: Path, model: nn.Module, example: Example) -> Result:
    result = carry_out(model, Plan.load(bundle / "plan.json"), example)
    load_weights(result.model, bundle / "weights.safetensors")
    return result
