"""What the runtime or chip that an int8 file is for wants of it: types, granularity, fixed shapes, even widths.

The default is onnxruntime on this machine's kind of processor. Its kernels multiply unsigned activations with signed
weights; without VNNI (or on ARM without a dot product) x86 adds pairs of products in 16 bits, which saturate unless the
weights keep to seven bits (`reduce_range`). `npu` is for compilers that take QDQ files; their conventions differ, so
each is an option. Nothing is claimed of a device that was not measured.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from convsurgeon.base.errors import ExportError

Activations = Literal["uint8", "int8"]


@dataclass(frozen=True)
class Target:
    """How an int8 file is made.

    Args:
        name: of the kind of target, for the report.
        activations: type of the values between layers.
        per_channel: whether every output channel of a weight has its own scale.
        reduce_range: whether weights keep to seven bits.
        symmetric: whether the zero of activations is fixed in the middle, so that ReLUs stay nodes.
        static: whether all shapes must be fixed.
        align: inner widths are asked to be multiples of it; 1 asks for nothing.
        whole: whether the ends of a network that adds to an image are rounded, too (see `ends.py`).

    Raises:
        ExportError: a type that is none, or no alignment.
    """

    name: str = "onnxruntime"
    activations: Activations = "uint8"
    per_channel: bool = True
    reduce_range: bool = False
    symmetric: bool = False
    static: bool = False
    align: int = 1
    whole: bool = False

    def __post_init__(self) -> None:
        if self.activations not in ("uint8", "int8"):
            raise ExportError(f"target: activations={self.activations!r}; pass 'uint8' or 'int8'")
        if isinstance(self.align, bool) or not isinstance(self.align, int) or self.align < 1:
            raise ExportError(f"target: align={self.align!r}; pass a whole number from 1, for example 32")

    @property
    def largest_weight(self) -> int:
        """The largest level of a weight; the smallest is its negative."""
        return 64 if self.reduce_range else 127

    @staticmethod
    def onnxruntime(processor: Literal["here", "vnni", "avx2", "arm"] = "here") -> Target:
        """A file for onnxruntime's CPU kernels.

        Args:
            processor: `"vnni"` x86 with it, `"avx2"` x86 without, `"arm"`, or `"here"` whatever this machine has.

        Raises:
            ExportError: another word.
        """
        if processor not in ("here", "vnni", "avx2", "arm"):
            raise ExportError(f"target: processor {processor!r}; pass one of here, vnni, avx2, arm")
        saturates = _saturates() if processor == "here" else processor == "avx2"
        return Target(reduce_range=saturates)

    @staticmethod
    def npu(activations: Activations = "int8", per_channel: bool = True, align: int = 32) -> Target:
        """A QDQ file as compilers for NPUs take it: fixed shapes, everything symmetric if signed."""
        return Target(
            "npu", activations, per_channel, symmetric=activations == "int8", static=True, align=align, whole=True
        )


@cache
def _saturates() -> bool:
    """Whether this processor adds products of int8 in 16 bits: x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True  # unknown: seven bits are right everywhere
    words = set(flags.split())
    return not words & {"avx512_vnni", "avx_vnni"}
