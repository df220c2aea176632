"""Do times of sessions in turns say what a session by itself takes, and what do its threads have to do with it?

    python tests/benchmarks/bench_threads.py [resnet18 resnet20] [--threads 2] [--rounds 3]

Each network as it is and in four forms. `alone`: processes with one session of the runtime's own settings, as in use.
`in turns`: all sessions in one process, one run each, back and forth, with the settings of `session_options` (`as
timed`) and with workers that sleep between the nodes of a run (`asleep`). Speed-ups over dense, from the mean of the
fastest quarter of the runs, median of the rounds; `A/A` is that of a second dense session. Random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import convsurgeon as cs
from convsurgeon.onnx import standalone as measuring
from convsurgeon.onnxnet.session import open_session
from tests.benchmarks.bench_latency_table import NETWORKS

FORMS: dict[str, cs.Form] = {
    "separable 1": cs.DepthwiseSeparable(rank=1),
    "separable 4": cs.DepthwiseSeparable(rank=4),
    "spatial 0.5": cs.SpatialSeparable(rank=cs.Share(0.5)),
    "spatial 0.25": cs.SpatialSeparable(rank=cs.Share(0.25)),
}
SECONDS = 1.5
"""Per network and round."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["resnet18", "resnet20"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(_times({"": _session(Path(options.alone), options.threads, "alone")})[""]))
        return
    torch.set_num_threads(1)
    rows = []
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            files = _files(name, Path(folder))
            for how in ("alone", "as timed", "asleep"):
                found = [_round(files, options.threads, how) for _ in range(options.rounds)]
                medians = {label: float(np.median([one[label] for one in found])) for label in found[0]}
                dense = medians["dense"]
                rows.append((name, how, dense, *(dense / medians[label] for label in (*FORMS, "dense again"))))
    print(f"threads {options.threads}, {options.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    print(tabulate(rows, ("network", "sessions", "dense ms", *FORMS, "A/A"), tablefmt="pipe", floatfmt=".2f"))


def _files(name: str, folder: Path) -> dict[str, Path]:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, example = build().eval(), torch.randn(shape)
    made = {"dense": model} | {
        label: cs.convert(model, example, forms=[form], calibration=False).model for label, form in FORMS.items()
    }
    files = {label: folder / f"{number}.onnx" for number, label in enumerate(made)}
    for label, file in files.items():
        cs.onnx.export(made[label], example, file)
    return files | {"dense again": files["dense"]}


def _round(files: dict[str, Path], threads: int, how: str) -> dict[str, float]:
    if how == "alone":
        command = [sys.executable, __file__, "--threads", str(threads), "--alone"]
        return {label: json.loads(subprocess.check_output([*command, str(file)])) for label, file in files.items()}
    return _times({label: _session(file, threads, how) for label, file in files.items()})


def _session(file: Path, threads: int, how: str) -> ort.InferenceSession:
    settings = ort.SessionOptions() if how == "alone" else measuring.session_options(threads)
    settings.intra_op_num_threads, settings.log_severity_level = threads, 4
    if how == "asleep":
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return open_session(file, settings)


def _times(sessions: dict[str, ort.InferenceSession]) -> dict[str, float]:
    """Milliseconds of each, in turns, over about `SECONDS` for each."""
    pairs, (taken, *_) = list(sessions.items()), next(iter(sessions.values())).get_inputs()
    feeds = {taken.name: np.random.default_rng(0).standard_normal(taken.shape).astype(np.float32)}
    turn_ms = sum(min(found) for found in measuring._rounds(pairs, feeds, 2).values())
    found = measuring._rounds(pairs, feeds, max(5, int(1e3 * SECONDS * len(pairs) / turn_ms)))
    return {label: measuring._low(times) for label, times in found.items()}


if __name__ == "__main__":
    main()
