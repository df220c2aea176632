"""What a call takes of the processor and of memory, by stage, seen from a thread beside it; and passes of its convs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import pytest
from torch import Tensor, nn

from tests.benchmarks.measure import memory_mb

_EVERY_S = 0.05
_NAMES = {
    "gather": "images",
    "Within.resolve": "images",
    "check_repeatable": "images",
    "export_skeleton": "export to ONNX",
    "measure_table": "timing layers",
    "time_plan": "timing plans",
    "with_all_cores": "timing plans",
    "gradient_moments": "gradients",
    "_second_moments": "moments",
    "score_by_data": "scores",
    "fit_in_order": "values to fit to",
    "fit_site": "fits",
    "site_error": "fits",
    "fit_jointly": "joint fit",
    "_renew_norms": "batch norms",
    "OutputJudge.score": "judging",
    "OutputJudge.compare": "judging",
    "_write_float": "export to ONNX",
    "check_parity": "parity",
    "bench": "timing files",
    "compare_files": "comparing files",
}
"""Function of the package -> stage; the innermost counts."""


@dataclass
class Stages:
    """Processor seconds and peak memory in MB by stage, the largest first; and multiply-accumulates of all convs."""

    seconds: dict[str, float] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)
    conv_macs: float = 0.0

    def add(self, frame: FrameType | None, seconds: float) -> None:
        """Count some seconds for what a frame is doing."""
        stage = _stage(frame)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.peak_mb[stage] = max(self.peak_mb.get(stage, 0.0), memory_mb("VmRSS"))

    def columns(self) -> dict[str, str]:
        """Return both as cells of a row: stages of a second or more, and the three that hold most."""
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        largest = sorted(self.peak_mb.items(), key=lambda item: -item[1])[:3]
        return {
            "stages, s": ", ".join(f"{name} {seconds:.0f}" for name, seconds in ordered if seconds >= 1),
            "stages, peak MB": ", ".join(f"{name} {size:.0f}" for name, size in largest),
        }


@contextmanager
def watched() -> Iterator[Stages]:
    """Yield what the calling thread's work takes, until the block ends."""
    found, over, caller = Stages(), threading.Event(), threading.get_ident()

    def watch() -> None:
        last = time.process_time()
        while not over.wait(_EVERY_S):
            now = time.process_time()
            found.add(sys._current_frames().get(caller), now - last)
            last = now

    def counted(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = forward(self, x, weight, bias)
        found.conv_macs += out.numel() * weight[0].numel()
        return out

    forward = nn.Conv2d._conv_forward
    watcher = threading.Thread(target=watch, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Conv2d, "_conv_forward", counted)
        watcher.start()
        try:
            yield found
        finally:
            over.set()
            watcher.join()


def _stage(frame: FrameType | None) -> str:
    while frame is not None:
        code = frame.f_code
        if code.co_qualname in _NAMES and "convsurgeon" in code.co_filename:
            return _NAMES[code.co_qualname]
        frame = frame.f_back
    return "all else"
