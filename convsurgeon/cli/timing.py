"""The commands about milliseconds: `device` and `bench`; onnx and onnxruntime load when they run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from convsurgeon.cli import options as shared
from convsurgeon.cli.reading import read_forms, read_model
from convsurgeon.forms.catalogue import BUDGET_FORMS

_LEVELS = ("all", "extended", "basic", "off")


def add(commands: Any, name: str) -> None:
    """Add one of the commands."""
    {"device": _add_device, "bench": _add_bench}[name](commands)


def _add_device(commands: Any) -> None:
    net = "net.py:factory --input 1x3x32x32"
    examples = [f"{net} --out pi4/", "detector.onnx --out pi4/ --force"]
    device = shared.add_command(commands, "device", _device, examples)
    shared.add_model(device)
    shared.add_forms(device)
    shared.add_output(device, "DIR", "where the folder for the device goes", required=True)
    device.add_argument("--provider", default="CPUExecutionProvider", metavar="NAME", help="that the device will use")


def _add_bench(commands: Any) -> None:
    examples = ["a.onnx b.onnx", "a.onnx b.onnx c.onnx --threads 1 4 --level all"]
    bench = shared.add_command(commands, "bench", _bench, examples)
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


def _device(options: argparse.Namespace) -> None:
    from convsurgeon.runtime.device_folder import write_device_folder

    model, example = read_model(options)
    forms = read_forms(options) or BUDGET_FORMS
    count = write_device_folder(
        model, example, forms, options.out, options.select, provider=options.provider, overwrite=options.force
    )
    size = sum(path.stat().st_size for path in Path(options.out).iterdir())
    print(f"{options.out}: the dense network and {count} candidates in fp32 and int8, {size / 1e6:.1f} MB")
    print(f"On the device: python {Path(options.out) / 'measure.py'}, which needs numpy and onnxruntime and writes")
    print("device.json. Then here: convsurgeon convert ... --budget latency=0.5 --device device.json")


def _bench(options: argparse.Namespace) -> object:
    from convsurgeon.timing.benchmark import bench

    found = bench(
        *options.files,
        pairs=options.pairs,
        threads=options.threads,
        levels=options.level if options.provider == "CPUExecutionProvider" else options.level[:1],
        provider=options.provider,
        options=dict(options.options),
        batch=options.batch,
        sizes=dict(options.sizes),
        progress=not options.json,
    )
    return found.to_dict() if options.json else print(found)


def _size(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if not name or not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=N")
    return name, int(value)
