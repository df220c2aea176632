"""The commands about milliseconds: `device` and `bench`; onnx and onnxruntime load when they run."""

from __future__ import annotations

import argparse
from pathlib import Path

from convsurgeon.cli.reading import read_forms, read_model
from convsurgeon.forms.catalogue import BUDGET_FORMS


def run_device(options: argparse.Namespace) -> None:
    """Write the folder for a device."""
    from convsurgeon.runtime.device_folder import write_device_folder

    model, example = read_model(options)
    forms = read_forms(options) or BUDGET_FORMS
    count = write_device_folder(
        model, example, forms, options.out, options.select, provider=options.provider, overwrite=options.force
    )
    size = sum(path.stat().st_size for path in Path(options.out).iterdir())
    print(f"{options.out}: the dense network and {count} candidates in fp32 and int8, {size / 1e6:.1f} MB")
    needs = "numpy, onnxruntime and openvino" if options.provider == "openvino" else "numpy and onnxruntime"
    print(f"On the device: python {Path(options.out) / 'measure.py'}, which needs {needs}, runs them with")
    print(f"{options.provider} and writes device.json. Then here: convsurgeon convert ... --budget latency=0.5")
    print("--device device.json")


def run_bench(options: argparse.Namespace) -> object:
    """Time files and print the comparison."""
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
