"""What the system refuses is one line that says what to do: real limits, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convsurgeon as cs

pytest.importorskip("resource")  # not on Windows
LINUX = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory in use is read from /proc")

BEGIN = """
import os, resource, sys, tempfile
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import convsurgeon as cs

torch.set_num_threads(1)
def net(width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3)).eval()

def convert(model, images, **how):
    return cs.convert(model, images[:1], calibration=images, progress=False, **how)

def tried(call):
    try:
        call()
        print("done")
    except cs.ConvSurgeonError as error:
        print(type(error).__name__, error)

small, forms = torch.randn(16, 3, 12, 12), {"2": cs.DepthwiseSeparable(rank=2)}
result = convert(net(), small, forms=forms)  # everything is loaded
"""
MEMORY = """
wide, large, one = net(64), torch.randn(24, 3, 512, 512), torch.randn(1, 3, 1024, 1024)
used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGESIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))
tried(lambda: convert(wide, large, forms=forms))
tried(lambda: cs.convert(wide, one, calibration=False, forms=forms, progress=False))
tried(lambda: convert(net(), small, forms=forms))
"""
PROCESSES = """
with tempfile.TemporaryDirectory() as folder:
    cs.export(result, folder + "/out", pairs=0, progress=False)
loader = DataLoader(TensorDataset(small), 4, num_workers=2)
cs.convert(net(), small[:1], calibration=loader, forms=forms, progress=False)  # loads what starts processes
np.quantile(np.ones(2), 0.5)  # loads the rest of numpy: the user below may not read where it is installed
if os.geteuid() == 0:
    os.setuid(54321)  # root has no limit; this user has neither a name nor a home
for name in ("HOME", "XDG_CACHE_HOME", "CONVSURGEON_CACHE"):
    os.environ.pop(name, None)
tried(lambda: convert(net(), small))  # measured, and kept for the next call where there is a place
os.environ["HOME"] = "/nonexistent"
tried(lambda: convert(net(), small))
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
tried(lambda: convert(net(), small, forms=forms))
tried(lambda: convert(net(), small, runtime=cs.Runtime(threads=2)))
tried(lambda: cs.convert(net(), small[:1], calibration=loader, forms=forms, progress=False))
tried(lambda: cs.export(result, tempfile.mkdtemp() + "/out", pairs=0, progress=False))
"""


def _lines(script: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEGIN + script], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@LINUX
def test_memory_at_its_limit() -> None:
    *refused, small = _lines(MEMORY)
    assert [line.split()[0] for line in refused] == ["ResourceError"] * 2
    assert " at Conv2d(" in refused[1]  # the layer at which it ran out
    assert small == "done"


def test_no_more_processes_or_threads() -> None:
    kinds = [line.split()[0] for line in _lines(PROCESSES)]
    assert kinds[:3] == ["done"] * 3
    assert kinds[4] == "ResourceError"
    assert set(kinds[3:]) <= {"done", "ResourceError", "ExportError"}  # a busy machine is not asked for its threads


def test_the_layer_that_was_run_is_named() -> None:
    class Greedy(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 1:
                raise MemoryError
            return super().forward(x)

    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), Greedy(8, 7, 1)), torch.randn(1, 3, 8, 8)
    result = cs.convert(model, x, calibration=False, forms={"0": cs.DepthwiseSeparable(rank=1)}, progress=False)
    with pytest.raises(cs.errors.ResourceError, match=r"at Greedy\(8, 7"):
        cs.recover(result, torch.randn(8, 3, 8, 8), progress=False)
