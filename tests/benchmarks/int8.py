"""What is each step of the int8 export worth, and which integer types does the runtime like?

`steps`: metric of the int8 file with each step alone, with none and with all, beside its float file. `types`: the
runtime's time for unsigned and signed values, seven bits, and one scale per tensor, with random weights. What whole
plans gain in int8 says `networks --goals int8`.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import onnx

import convsurgeon as cs
from convsurgeon.int8.qdq import insert_qdq
from convsurgeon.int8.ranges import nominal_ranges
from tests.benchmarks.cases import CASES, SHAPES, add_seeds, random_network
from tests.benchmarks.measure import compare_files, deployed
from tests.benchmarks.runner import Row

FORMS: dict[str, list[cs.Form]] = {
    "dense": [],
    "cp": [cs.CP(rank=cs.Share(0.35)), cs.DepthwiseSeparable(rank=2)],
    "separable": [cs.DepthwiseSeparable(rank=2)],
}
STEPS = ("merge_sums", "equalise", "round_weights")
"""Of `int8.pipeline`, all of which the export takes."""
TARGETS = {
    "unsigned, per channel": cs.onnx.Target(),
    "signed": cs.onnx.Target(activations="int8"),
    "signed, symmetric": cs.onnx.Target(activations="int8", symmetric=True),
    "seven bits": cs.onnx.Target(reduce_range=True),
    "per tensor": cs.onnx.Target(per_channel=False),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the part, the networks and the forms."""
    parser.add_argument("part", choices=("steps", "types"))
    known = f"of {', '.join(CASES)} for steps, of {', '.join(SHAPES)} for types"
    parser.add_argument("--networks", nargs="+", default=["resnet20"], metavar="network", help=known)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    add_seeds(parser)


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of one part."""
    for name in options.networks:
        for label in options.forms:
            rows = _steps if options.part == "steps" else _types
            yield from ({"network": name, "form": label} | row for row in rows(name, FORMS[label], options))


def _steps(name: str, forms: list[cs.Form], options: argparse.Namespace) -> Iterator[Row]:
    case = CASES[name]
    for seed in options.seeds:
        model, images = case.model(), case.images(seed)
        if forms:
            model = cs.convert(model, images[:1], forms=forms, calibration=images, seed=seed, progress=False).model
        runtime, exact = cs.Runtime(precision="int8"), case.metric(model)
        for taken in ((), *((step,) for step in STEPS), STEPS):
            with contextlib.ExitStack() as stack:
                for step in set(STEPS) - set(taken):
                    stack.enter_context(mock.patch(f"convsurgeon.int8.pipeline.{step}", return_value=None))
                rough = case.metric(deployed(runtime, model, images))
            label = " and ".join(taken) or "none"
            yield {"seed": seed, "steps": label, "float": exact, "int8": rough, "lost": exact - rough}


def _types(name: str, forms: list[cs.Form], options: argparse.Namespace) -> Iterator[Row]:
    model, example = random_network(name)
    if forms:
        model = cs.convert(model, example, forms=forms, calibration=False, progress=False).model
    with tempfile.TemporaryDirectory() as folder:
        base, file = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        cs.onnx.export(model, example, base)
        graph = onnx.load(base)
        for label, target in TARGETS.items():
            onnx.save(insert_qdq(graph, nominal_ranges(graph), target), file)
            yield {"types": label} | compare_files(base, file, threads=options.threads)
