"""The fresh process of `memory.py`: run as a script, it imports nothing of ours.

Arguments: the ONNX file, its inputs as npz, threads, the number of the optimisation level.
Prints resident bytes before the file is opened, and the peak after three runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def main(path: str, feed: str, threads: str, level: str) -> None:
    """Opens the file, runs it, prints both figures."""
    with np.load(feed) as arrays:
        inputs = dict(arrays)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = int(threads), 1
    options.graph_optimization_level = ort.GraphOptimizationLevel(int(level))
    options.log_severity_level = 4
    before = status_bytes("VmRSS")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(3):
        session.run(None, inputs)
    print(before, status_bytes("VmHWM"))


def status_bytes(field: str) -> int:
    """A figure of /proc/self/status."""
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in text.splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
