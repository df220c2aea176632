"""The converted files in other runtimes: right to 1e-5, and how much faster than dense there.

    convsurgeon convert examples/digits.py:digit_net ... --out lighter        # README's first command
    pip install openvino ncnn pnnx                                  # in a venv of their own: they pull much in
    pip install onnx2tf ai-edge-litert tensorflow-cpu tf_keras onnxsim sng4onnx onnx-graphsurgeon psutil    # in another
    npm install --ignore-scripts onnxruntime-node onnxruntime-web   # in a folder
    python -m tests.benchmarks.bench_runtimes lighter --python VENV/bin/python --litert OTHER/bin/python --node FOLDER

One thread, runs of both files in turns; the speed-up is the median over the rounds. What is not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from convsurgeon.base.tables import Table

DRIVERS = Path(__file__).with_name("runtimes")
FILES = ("original.onnx", "model.onnx")


@dataclass(frozen=True)
class Found:
    """One runtime's answer: its version, the largest error of each file over the largest output, and the times."""

    runtime: str
    version: str
    errors: tuple[float, ...]
    ms: tuple[float, ...]
    speedup: float


def commands(python: str | None, litert: str | None, node: str | None) -> dict[str, list[str]]:
    """How each runtime is started, for those that are there."""
    found: dict[str, list[str]] = {}
    for name, interpreter in (("openvino", python), ("ncnn", python), ("litert", litert)):
        modules = {"openvino": "openvino", "ncnn": "ncnn, pnnx", "litert": "onnx2tf, ai_edge_litert"}[name]
        if interpreter and _succeeds([interpreter, "-c", f"import {modules}"]):
            found[name] = [interpreter, str(DRIVERS / f"in_{name}.py")]
    for kind in ("node", "web") if node and shutil.which("node") else ():
        if (Path(str(node)) / "node_modules" / f"onnxruntime-{kind}").is_dir():
            found[f"onnxruntime-{kind}"] = ["node", str(DRIVERS / "in_node.js"), kind, str(Path(str(node)).resolve())]
    return found


def measure(name: str, command: list[str], files: tuple[Path, ...], image: np.ndarray[Any, Any], rounds: int) -> Found:
    """Runs some files on one image in another runtime, and compares with onnxruntime here."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "image.bin"
        image.astype(np.float32).tofile(place)
        shape = "x".join(map(str, image.shape))
        arguments = [str(place), shape, str(rounds), *(str(file.resolve()) for file in files)]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    errors = []
    for file, output in zip(files, told["outputs"], strict=True):
        session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        right = session.run(None, {session.get_inputs()[0].name: image.astype(np.float32)})[0].ravel()
        errors.append(float(np.abs(right - np.array(output)).max() / np.abs(right).max()))
    return Found(name, told["version"], tuple(errors), tuple(told["ms"]), told["speedup"][-1])


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=300).returncode == 0
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--python")
    parser.add_argument("--litert")
    parser.add_argument("--node")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    with np.load(options.bundle / "golden_inputs.npz") as held:
        image = next(iter(held.values()))[:1]
    files = tuple(options.bundle / name for name in FILES)
    columns = (
        *(("runtime", "text"), ("version", "text"), ("error, original", "number"), ("error, model", "number")),
        *(("original ms", "ms"), ("model ms", "ms"), ("speed_up", "times")),
    )
    rows = []
    for name, command in commands(options.python, options.litert, options.node).items():
        found = measure(name, command, files, image, options.rounds)
        rows.append((found.runtime, found.version, *found.errors, *found.ms, found.speedup))
    print(
        Table(f"{options.bundle} in other runtimes, one thread, {options.rounds} rounds in turns", columns, tuple(rows))
    )


if __name__ == "__main__":
    main()
