"""Run an ONNX file in a fresh process and print its resident bytes before, and its peak.

This script imports nothing of the package but what a device has, too.

Arguments: the ONNX file, its inputs as npz, an `Engine` as JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "onnxnet"))
from measuring.engine import Engine

sys.path.pop(0)


def read_status(field: str) -> int:
    """Return the bytes of a field of /proc/self/status."""
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in text.splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    path, feed, setting = sys.argv[1:]
    with np.load(feed) as arrays:
        inputs = dict(arrays)
    engine = Engine(**json.loads(setting))
    before = read_status("VmRSS")
    session = engine.open(Path(path))
    for _ in range(3):
        session.run(None, inputs)
    print(before, read_status("VmHWM"))
