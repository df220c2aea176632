"""What the runtime or chip that an int8 file is for wants of it: types, granularity, fixed shapes, even widths.

The default is onnxruntime on this machine's kind of processor. Its kernels multiply unsigned activations with signed
weights; x86 without VNNI adds pairs of products in 16 bits, which saturate unless the weights keep to seven bits
(`reduce_range`). `npu` is for compilers that take QDQ files; their conventions differ, so each is an option.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Literal

from convsurgeon.base.errors import ExportError
from convsurgeon.base.processor import processor_flags

Activations = Literal["uint8", "int8"]


@dataclass(frozen=True)
class Target:
    """How an int8 file is made.

    Args:
        name: Of the kind of target, for the report.
        activations: Type of the values between layers.
        per_channel: Whether every output channel of a weight has its own scale.
        reduce_range: Whether weights keep to seven bits.
        symmetric: Whether the zero of activations is fixed in the middle, so that ReLUs stay nodes.
        static: Whether all shapes must be fixed.
        align: Inner widths that are not a multiple of it are noted.
        whole: Whether the ends of a network that adds to an image are rounded too (see `float_ends.py`).

    Raises:
        ExportError: `activations` or `align` cannot be used.
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
        """Return the target of a file for onnxruntime's CPU kernels.

        Args:
            processor: `"vnni"` x86 with it, `"avx2"` x86 without, `"arm"`, or `"here"`, this machine's.

        Raises:
            ExportError: The processor is not one of these.
        """
        if processor not in ("here", "vnni", "avx2", "arm"):
            raise ExportError(f"target: processor {processor!r}; pass one of here, vnni, avx2, arm")
        return Target(reduce_range=_saturates() if processor == "here" else processor == "avx2")

    @staticmethod
    def npu(activations: Activations = "int8", per_channel: bool = True, align: int = 32) -> Target:
        """Return the target of a file for an NPU's compiler: fixed shapes, everything symmetric if signed."""
        return Target(
            "npu", activations, per_channel, symmetric=activations == "int8", static=True, align=align, whole=True
        )


def _saturates() -> bool:
    """Tell whether this processor adds products of int8 in 16 bits: x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    flags = processor_flags()  # where they are not known seven bits are right
    return flags is None or not flags & {"avx512_vnni", "avx_vnni"}
