"""Facts about the machine that a latency figure means nothing without."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

# What the runtime's convolution kernels choose by.
_TELLING_FLAGS = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Where and with what something was measured."""

    cpu: str
    cores: int
    isa: tuple[str, ...]
    system: str
    python: str
    onnx: str
    onnxruntime: str
    load: float
    """Load average of the last minute; 0 where the system does not tell."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "isa": list(self.isa)}

    def __str__(self) -> str:
        isa = " ".join(self.isa) or "unknown instruction set"
        return (
            f"{self.cpu}, {self.cores} cores ({isa}), load {self.load:.1f}; "
            f"{self.system}, Python {self.python}, onnx {self.onnx}, onnxruntime {self.onnxruntime}"
        )


def machine() -> Machine:
    """Reads the facts of this machine, now."""
    facts = _cpu_facts()
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return Machine(
        cpu=facts.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        isa=tuple(flag for flag in _TELLING_FLAGS if flag in flags),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        onnx=onnx.__version__,
        onnxruntime=ort.__version__,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
    )


def _cpu_facts() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo, where there is one."""
    try:
        block = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
