"""Run an ONNX file in a fresh process and print its resident bytes before, and its peak.

This script imports nothing of the package.

Arguments: the ONNX file, its inputs as npz, threads, the number of the optimisation level.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def read_status(field: str) -> int:
    """Return the bytes of a field of /proc/self/status."""
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in text.splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    path, feed, threads, level = sys.argv[1:]
    with np.load(feed) as arrays:
        inputs = dict(arrays)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = int(threads), 1
    options.graph_optimization_level = ort.GraphOptimizationLevel(int(level))
    options.log_severity_level = 4
    before = read_status("VmRSS")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(3):
        session.run(None, inputs)
    print(before, read_status("VmHWM"))
