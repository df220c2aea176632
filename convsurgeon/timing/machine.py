"""Facts about the machine without which a latency means nothing."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import onnx

from convsurgeon.base.processor import processor_flags
from convsurgeon.onnxnet.measuring import place

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

    def __str__(self) -> str:
        isa = " ".join(self.isa) or "unknown instruction set"
        return (
            f"{self.cpu}, {self.cores} core{'s' * (self.cores > 1)} ({isa}), load {self.load:.1f}; "
            f"{self.system}, Python {self.python}, onnx {self.onnx}, onnxruntime {self.onnxruntime}"
        )


def read_machine() -> Machine:
    """Return the facts of this machine, now."""
    flags = processor_flags() or ()
    return Machine(
        **place.machine(),
        isa=tuple(flag for flag in _TELLING_FLAGS if flag in flags),
        python=platform.python_version(),
        onnx=onnx.__version__,
    )
