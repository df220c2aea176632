"""What is each step of the int8 export worth, and which integer types does the runtime like?

`steps`: metric of the int8 file with each step alone, with none and with all, beside its float file. `types`: the
runtime's time for unsigned and signed values, seven bits, and one scale per tensor, with random weights. What whole
plans gain in int8 says `goals --precision int8`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx

import convsurgeon as cs
from convsurgeon.calibration.dataset import Calibration, read
from convsurgeon.int8.equalise import equalise
from convsurgeon.int8.feeds import make_feeds
from convsurgeon.int8.merge_sums import merge_sums
from convsurgeon.int8.module import IMAGES, Int8Module
from convsurgeon.int8.pipeline import round_graph
from convsurgeon.int8.qdq import insert_qdq
from convsurgeon.int8.ranges import find_ranges, nominal_ranges
from convsurgeon.onnx.exporter import export_graph
from tests.benchmarks.cases import CASES, SHAPES, add_seeds, random_network
from tests.benchmarks.measure import compare_files
from tests.benchmarks.runner import Row

FORMS: dict[str, list[cs.Form]] = {
    "dense": [],
    "cp": [cs.CP(rank=cs.Share(0.35)), cs.DepthwiseSeparable(rank=2)],
    "separable": [cs.DepthwiseSeparable(rank=2)],
}
STEPS = {
    "none": (),
    "sums joined": ("join",),
    "ranges evened out": ("equalise",),
    "weights fitted": ("fit",),
    "all": ("join", "equalise", "fit"),
}
TARGETS = {
    "unsigned, per channel": cs.Target(),
    "signed": cs.Target(activations="int8"),
    "signed, symmetric": cs.Target(activations="int8", symmetric=True),
    "seven bits": cs.Target(reduce_range=True),
    "per tensor": cs.Target(per_channel=False),
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
        data = read(images, cs.capture(model, images[:1]).example, len(images))
        exact = case.metric(model)
        for label, steps in STEPS.items():
            rough = case.metric(_quantised(model, data, steps))
            yield {"seed": seed, "steps": label, "float": exact, "int8": rough, "lost": exact - rough}


def _quantised(model: object, data: Calibration, steps: tuple[str, ...]) -> Int8Module:
    """Return the model as its int8 file computes it, with some of the export's steps."""
    batch = data.fitted[0].tensors()[0][:16]
    graph = export_graph(model, batch)
    (name,) = (info.name for info in graph.graph.input)
    feeds = make_feeds(graph, [{name: one.tensors()[0].numpy()} for one in data.fitted])[: IMAGES // len(batch)]
    if "join" in steps:
        merge_sums(graph.graph)
    if "equalise" in steps:
        equalise(graph, feeds)
    ranges, target = find_ranges(graph, feeds, "percentile"), cs.Target.onnxruntime()
    fits = "fit" in steps
    return Int8Module(round_graph(graph, ranges, feeds, target) if fits else insert_qdq(graph, ranges, target), model)


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
