"""Do converted files compute the same in other runtimes, and how much faster are they there than the dense file?

Each runtime is a driver of its own in `runtimes`, started with the Python (or node) that has it, on one thread;
`--python`, `--litert` and `--node` say where, and what is not there is left out. Every conv that takes a form has it.
All files of a network run in turns; `ms` are of the processor. `largest error` is against onnxruntime here, over the
largest output. What fails has a row that says why, and the others go on.

onnx2tf makes wrong files in silence: 1.29.24 where a sum stands before a pixel shuffle, as in forms of transposed convs
with several branches; 2.6.9 where two products stand around a ReLU, as PReLU has them in files of this package.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

import convsurgeon as cs
from convsurgeon.onnx.exporter import write_file
from tests.benchmarks.cases import add_networks
from tests.benchmarks.measure import paired_ratio
from tests.benchmarks.runner import Row
from tests.benchmarks.subjects import SUBJECTS

PLAIN = "dense, as torch writes it"
RIGHT = 1e-5
"""Largest error of a file that counts as right."""
DRIVERS = Path(__file__).with_name("runtimes")
_LONGEST_S = 1800
"""What one runtime may take for one network, its conversion included."""
FORMS: dict[str, cs.Form] = {
    "separable": cs.DepthwiseSeparable(rank=2),
    "blueprint": cs.Blueprint(rank=2),
    "cp": cs.CP(rank=cs.Share(0.3)),
    "lowrank": cs.LowRank(rank=cs.Share(0.5)),
}


@dataclass(frozen=True)
class Outcome:
    """One runtime's answer: its version, the largest error of each file over the largest output, and ms by round."""

    version: str
    errors: tuple[float, ...]
    times: np.ndarray[Any, np.dtype[np.float64]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add where the runtimes are."""
    add_networks(parser, list(SUBJECTS), ["digits", "squeezenet", "fsrcnn"])
    parser.add_argument("--python", help="a Python with openvino, ncnn and pnnx")
    parser.add_argument("--litert", help="a Python with onnx2tf and ai-edge-litert")
    parser.add_argument("--node", help="a folder into which npm installed onnxruntime-node and onnxruntime-web")
    parser.add_argument("--rounds", type=int, default=100)


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each network, runtime and form."""
    known = commands(options.python, options.litert, options.node)
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            try:
                files, image = _write(name, Path(folder))
            except (cs.errors.ConvSurgeonError, OSError) as error:
                yield {"network": name, "error": _why(error)}
                continue
            for runtime, command in known.items():
                about = {"network": name, "runtime": runtime}
                try:
                    found = measure(command, list(files.values()), image, options.rounds)
                except RuntimeError as error:
                    yield {**about, "error": _why(error)}
                    continue
                for place, form in enumerate(files):
                    yield about | {"version": found.version.split("-")[0], "form": form} | _figures(found, place)


def _why(error: Exception) -> str:
    """Return the last line of an error, where a driver's traceback says what is wrong."""
    return (str(error).splitlines() or [type(error).__name__])[-1][:100]


def _write(name: str, folder: Path) -> tuple[dict[str, Path], np.ndarray[Any, Any]]:
    """Write the dense network and one in each form that it takes; return the files and an image.

    Where it has PReLU, the dense network is also there as torch writes it.
    """
    subject = SUBJECTS[name]()
    model, example = subject.make().eval(), torch.zeros(subject.shape)
    models = {"dense": model}
    for label, form in FORMS.items():
        made = cs.convert(model, example, forms=[form], calibration=False, progress=False)
        models |= {label: made.model} if made.changes else {}
    files = {label: folder / f"{label}.onnx" for label in models}
    for label, path in files.items():
        cs.onnx.export(models[label], example, path)
    plain = folder / "torch.onnx"
    write_file(model, example, plain, metadata={}, as_it_was=True)
    if plain.read_bytes() != files["dense"].read_bytes():
        files[PLAIN] = plain
    return files, torch.rand(subject.shape, generator=torch.Generator().manual_seed(0)).numpy()


def _figures(found: Outcome, place: int) -> Row:
    """Return what a row says of one file; the first is the dense one."""
    paired = paired_ratio(found.times[0], found.times[place])
    row = {"largest error": found.errors[place], "ms": float(np.median(found.times[place]))}
    return row | ({"times as fast": paired["ratio"], "95 %": paired["interval"]} if place else {})


def digest(rows: Sequence[Row]) -> list[Row]:
    """Return for each network and runtime how many files are right, and how fast one form and torch's file are."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["network"], row.get("runtime", "-"), row.get("version", "-")), []).append(row)
    found = []
    for (network, runtime, version), own in groups.items():
        wrong = [row.get("form", row.get("error")) for row in own if not row.get("largest error", 1.0) < RIGHT]
        times = {row.get("form"): f"{row['times as fast']:.2f} ({row['95 %']})" for row in own if "95 %" in row}
        about = {"network": network, "runtime": runtime, "version": version, "files": len(own)}
        shown = {"wrong": ", ".join(wrong) or "-", "cp": times.get("cp", "-"), PLAIN: times.get(PLAIN, "-")}
        found.append(about | shown)
    return found


def commands(python: str | None, litert: str | None, node: str | None) -> dict[str, list[str]]:
    """Return how each runtime is started, for those that are there; `add_options` says where they are looked for."""
    found: dict[str, list[str]] = {}
    for name, interpreter in (("openvino", python), ("ncnn", python), ("litert", litert)):
        modules = {"openvino": "openvino", "ncnn": "ncnn, pnnx", "litert": "onnx2tf, ai_edge_litert"}[name]
        if interpreter and _succeeds([interpreter, "-c", f"import {modules}"]):
            found[name] = [interpreter, str(DRIVERS / f"in_{name}.py")]
    for kind in ("node", "web") if node and shutil.which("node") else ():
        if (Path(str(node)) / "node_modules" / f"onnxruntime-{kind}").is_dir():
            found[f"onnxruntime-{kind}"] = ["node", str(DRIVERS / "in_node.js"), kind, str(Path(str(node)).resolve())]
    return found


def measure(command: Sequence[str], files: Sequence[Path], image: np.ndarray[Any, Any], rounds: int) -> Outcome:
    """Run files on one image in another runtime, in turns, and compare with onnxruntime here.

    Raises:
        RuntimeError: the runtime fails on a file, or takes more than half an hour; its last line says why.
    """
    image = image.astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        place, answer = Path(folder) / "image.bin", Path(folder) / "answer.json"
        image.tofile(place)
        about = [str(place), "x".join(map(str, image.shape)), str(rounds), str(answer)]
        try:
            done = subprocess.run(
                [*command, *about, *(str(file.resolve()) for file in files)],
                capture_output=True, text=True, check=False, timeout=_LONGEST_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{command}: not ready after {_LONGEST_S} s") from None
        if done.returncode or not answer.exists():
            raise RuntimeError(f"{command}: status {done.returncode}: {done.stderr[-2000:].strip()}")
        found = json.loads(answer.read_text(encoding="utf-8"))
    errors = []
    for file, output in zip(files, found["outputs"], strict=True):
        session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        right = session.run(None, {session.get_inputs()[0].name: image})[0]
        errors.append(float(np.abs(right.ravel() - np.array(output)).max() / np.abs(right).max()))
    return Outcome(found["version"], tuple(errors), np.array(found["times"]))


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=300).returncode == 0
    except OSError:
        return False
