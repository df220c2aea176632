"""ONNX files in other runtimes: each is a driver of its own in `runtimes`, started with the Python that has it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

DRIVERS = Path(__file__).with_name("runtimes")


@dataclass(frozen=True)
class Outcome:
    """One runtime's answer: its version, the largest error of each file over the largest output, and the times."""

    version: str
    errors: tuple[float, ...]
    ms: tuple[float, ...]
    speedup: float


def commands(python: str | None, litert: str | None, node: str | None) -> dict[str, list[str]]:
    """Return how each runtime is started, for those that are there.

    Args:
        python: a Python with openvino, ncnn and pnnx.
        litert: a Python with onnx2tf, ai-edge-litert and what they need.
        node: a folder into which npm installed onnxruntime-node and onnxruntime-web.
    """
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
    """Run files on one image in another runtime, in turns, and compare with onnxruntime here."""
    image = image.astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "image.bin"
        image.tofile(place)
        arguments = [str(place), "x".join(map(str, image.shape)), str(rounds), *(str(file.resolve()) for file in files)]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    errors = []
    for file, output in zip(files, answer["outputs"], strict=True):
        session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        right = session.run(None, {session.get_inputs()[0].name: image})[0].ravel()
        errors.append(float(np.abs(right - np.array(output)).max() / np.abs(right).max()))
    return Outcome(answer["version"], tuple(errors), tuple(answer["ms"]), answer["speedup"][-1])


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=300).returncode == 0
    except OSError:
        return False
