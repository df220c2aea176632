"""The options of every command; nothing that takes seconds to load is loaded for them."""

from __future__ import annotations

import argparse
from typing import Any

from convsurgeon.base.precision import PRECISIONS
from convsurgeon.cli import options as shared

_NET = "net.py:factory --weights net.safetensors --input 1x3x32x32"
_LEVELS = ("all", "extended", "basic", "off")


def add(commands: Any, name: str) -> None:
    """Add one of the commands with its options."""
    globals()[f"_add_{name}"](commands)


def _add_inspect(commands: Any) -> None:
    command = shared.add_command(commands, "inspect", [_NET, "detector.onnx"])
    shared.add_model(command)
    shared.add_json(command)


def _add_plan(commands: Any) -> None:
    examples = [f"{_NET} --rank 2", f"{_NET} --budget macs=0.3 --out plan.json"]
    command = shared.add_command(commands, "plan", examples, ("weights", "input", "form", "rank", "budget", "json"))
    shared.add_model(command)
    shared.add_forms(command)
    shared.add_budget(command)
    shared.add_runtime(command)
    shared.add_output(command, "PLAN.json", "save the plan")
    shared.add_json(command)


def _add_sweep(commands: Any) -> None:
    examples = [f"{_NET} --calibrate photos/ --out curve.svg", f"{_NET} --calibrate photos/ --of latency"]
    usual = ("weights", "input", "images", "mean", "std", "metric", "of", "shares")
    command = shared.add_command(commands, "sweep", examples, usual)
    shared.add_model(command)
    shared.add_forms(command)
    shared.add_runtime(command)
    command.add_argument("--of", choices=("macs", "latency"), default="macs", help="kind of budget (default macs)")
    command.add_argument("--shares", nargs="+", type=float, help="budgets, as shares of the original's")
    shared.add_images(command, "--calibrate", "images to fit the weights to; synthetic ones if not given")
    shared.add_metric(command, better=False)
    shared.add_output(command, "PLOT.svg", "draw the curve: .svg, .png or .pdf (needs matplotlib)")
    shared.add_json(command)


def _add_convert(commands: Any) -> None:
    examples = [
        f"{_NET} --calibrate photos/ --metric net.py:accuracy --out lighter/",
        "detector.onnx --calibrate photos/ --out lighter/",
    ]
    usual = ("weights", "input", "images", "mean", "std", "metric", "within", "budget", "minutes", "int8")
    command = shared.add_command(commands, "convert", examples, usual)
    shared.add_model(command)
    shared.add_forms(command)
    command.add_argument("--plan", metavar="PLAN.json", help="carry out a saved plan instead of making one")
    shared.add_budget(command)
    command.add_argument(
        "--within",
        metavar="1.0",
        help="most that may be lost of --metric: 1.0, or 1%% of it (if not given 0.3%%, or 2%% where lower is better)",
    )
    shared.add_metric(command)
    shared.add_images(
        command, "--calibrate", "images to fit the weights to; synthetic ones if not given; none: weights alone"
    )
    command.add_argument("--limit", type=int, default=1024, help="most images to use (default 1024)")
    command.add_argument(
        "--minutes",
        type=float,
        help="that the search may take, with fewer images if need be; Ctrl-C, too, takes the best so far",
    )
    shared.add_seed(command)
    shared.add_runtime(command)
    shared.add_bundle(command)
    shared.add_printing(command)


def _add_recover(commands: Any) -> None:
    net = "net.py:factory --weights net.safetensors --input 1x3x32x32 --from lighter/ --data photos/"
    examples = [f"{net} --out better/", f"{net} --flip --shift 4 --run run/ --resume --out better/"]
    usual = ("weights", "input", "bundle", "images", "mean", "std", "epochs", "run_folder", "resume", "metric")
    command = shared.add_command(commands, "recover", examples, usual)
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


def _add_device(commands: Any) -> None:
    net = "net.py:factory --input 1x3x32x32"
    examples = [f"{net} --out pi4/", "detector.onnx --out pi4/ --force"]
    device = shared.add_command(commands, "device", examples, ("weights", "input", "provider"))
    shared.add_model(device)
    shared.add_forms(device)
    shared.add_output(device, "DIR", "where the folder for the device goes", required=True)
    device.add_argument("--provider", default="CPUExecutionProvider", metavar="NAME", help="that the device will use")


def _add_bench(commands: Any) -> None:
    examples = ["a.onnx b.onnx", "a.onnx b.onnx c.onnx --threads 1 4 --level all"]
    bench = shared.add_command(commands, "bench", examples)
    bench.add_argument("files", nargs="+", metavar="FILE.onnx")
    bench.add_argument("--batch", type=int, default=1, help="for a symbolic first dimension (default 1)")
    bench.add_argument(
        "--sizes", nargs="+", default=[], type=_size, metavar="NAME=N", help="for other symbolic dimensions (64 each)"
    )
    bench.add_argument("--pairs", type=int, default=100, help="rounds in the first setting (default 100; others 50)")
    bench.add_argument("--threads", nargs="+", type=int, default=[], help="of onnxruntime (default 1 and all cores)")
    bench.add_argument(
        "--level", nargs="+", choices=_LEVELS, default=["all", "extended"], help="of onnxruntime's optimisations"
    )
    shared.add_provider(bench)
    shared.add_json(bench)


def _size(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if not name or not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=N")
    return name, int(value)
