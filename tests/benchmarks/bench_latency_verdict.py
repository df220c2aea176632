"""Is the verdict right? One model against itself, and against one with 5 % more work, twenty times each.

    python -m tests.benchmarks.bench_latency_verdict [--runs 20] [--load 2]

Wanted: "no measurable difference" in at least 19 of 20 runs, and "slower" in at least 18 of 20, on a loaded machine.
`--load` starts that many processes which keep a core and the memory busy. Exits with 1 if it falls short.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from convsurgeon.timing.comparison import compare
from tests.onnx.small import conv_stack


def busy() -> None:
    """Streams through memory until it is stopped."""
    data = np.random.default_rng(0).random((1500, 1500))
    while True:
        data = data * 0.5 + data.T * 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--load", type=int, default=2)
    options = parser.parse_args()
    neighbours = [multiprocessing.Process(target=busy, daemon=True) for _ in range(options.load)]
    for neighbour in neighbours:
        neighbour.start()
    same = slower = 0
    with tempfile.TemporaryDirectory() as folder:
        base = conv_stack(Path(folder) / "base.onnx", 20, channels=32, size=16)
        more = conv_stack(Path(folder) / "more.onnx", 21, channels=32, size=16)
        started = time.perf_counter()
        for run in range(options.runs):
            null = compare(base, base, seed=run, progress=False)
            work = compare(base, more, seed=run, progress=False)
            same += null.verdict == "no measurable difference"
            slower += work.verdict == "slower"
            print(
                f"{run:2}  A/A {null.speedup:.4f} {null.verdict:26}  5 % {work.speedup:.4f} {work.verdict}", flush=True
            )
    seconds = time.perf_counter() - started
    for neighbour in neighbours:
        neighbour.terminate()
    print(f"A/A without difference: {same} of {options.runs}; 5 % more work slower: {slower} of {options.runs}")
    print(f"{seconds / (2 * options.runs):.1f} s a run, {options.load} busy neighbours; {null.machine}")
    return 0 if same >= 0.95 * options.runs and slower >= 0.9 * options.runs else 1


if __name__ == "__main__":
    sys.exit(main())
