"""Peak memory of running a file, read in a fresh process.

`VmHWM` of a process of its own: `ru_maxrss` of a child starts at its parent's peak, and a peak cannot be reset in a
process that has done other things before. The child loads the runtime and numpy, not torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convsurgeon.base.errors import LatencyError
from convsurgeon.base.files import scratch
from convsurgeon.onnx.files import load_checked, random_feed
from convsurgeon.onnxnet.measuring.engine import CPU, Engine
from convsurgeon.onnxnet.session import Level, check_engine

_TIMEOUT_S = 600
_STATUS = Path("/proc/self/status")
_CHILD = Path(__file__).with_name("memory_child.py")


@dataclass(frozen=True)
class PeakMemory:
    """Resident memory of a process that loads the runtime and a file, and runs it."""

    peak_bytes: int
    idle_bytes: int
    """What it held just before it opened the file: Python, numpy and the runtime."""


def can_read_memory() -> bool:
    """Tell whether this system reports how much memory a process held."""
    return _STATUS.is_file()


def peak_memory(
    path: str | Path,
    *,
    threads: int = 1,
    level: Level = "all",
    provider: str = CPU,
    options: Mapping[str, object] | None = None,
    batch: int = 1,
    sizes: Mapping[str, int] | None = None,
) -> PeakMemory:
    """Run a file in a fresh process and return its peak memory.

    Raises:
        LatencyError: The file cannot be run, or the system has no /proc.
    """
    file = Path(path)
    if not can_read_memory():
        raise LatencyError("peak memory: is read from /proc, which this system lacks; measure on Linux")
    load_checked(file)
    engine = Engine(threads, provider, options or {}, level)
    check_engine(engine)
    feed = random_feed(file, 0, batch, dict(sizes or {}))
    with scratch() as folder:
        np.savez(folder / "feed.npz", **feed)  # type: ignore[arg-type]
        arguments = [str(file), str(folder / "feed.npz"), json.dumps(vars(engine))]
        # -P: the child's folder holds modules of ours, which must not stand in for others of the same name.
        command = [sys.executable, "-P", str(_CHILD), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise LatencyError(f"{file}: ran for more than {_TIMEOUT_S} s; pass a smaller batch or sizes") from error
    if done.returncode:
        last = (done.stderr.strip() or "it ended without a message").splitlines()[-1].strip()
        raise LatencyError(f"{file}: cannot be run in a fresh process: {last}; pass other sizes=")
    idle, peak = map(int, done.stdout.split())
    return PeakMemory(peak, idle)
