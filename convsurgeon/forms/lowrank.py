"""Low-rank forms that stay dense: two or three ordinary convs in a row instead of one, with few channels between them.

* `SpatialSeparable`: the kernel as a (C*kh) x (O*kw) matrix of rank R: a kh x 1 conv to R channels, then a 1 x kw conv.
  Jaderberg, Vedaldi & Zisserman 2014, "Speeding up convolutional neural networks with low rank expansions", scheme 2.
* `Tucker`: inputs to fewer channels by a 1x1 conv, the window on those, then to all outputs by a 1x1 conv. The factors
  are those of the truncated higher-order SVD over inputs and outputs; Kim et al. 2016 (arXiv 1511.06530).

Both are exact at full rank under every padding: no bias stands before the last conv, and padding one axis at a time
gives the same borders as padding both. With groups everything holds group by group, the rank too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from convsurgeon.base.errors import FormError
from convsurgeon.forms import svd
from convsurgeon.forms.form import Branched, Spectra, Stages
from convsurgeon.forms.geometry import Geometry


@dataclass(frozen=True)
class SpatialSeparable(Branched):
    """A kh x 1 conv, then a 1 x kw conv, with `rank` channels per group between them."""

    name: ClassVar[str] = "spatial_separable"
    word: ClassVar[str] = "spatial"

    @property
    def branches(self) -> int:
        """One."""
        return 1

    def full_rank(self, geometry: Geometry) -> int:
        """min(C * kh, O * kw) of a group."""
        height, width = geometry.kernel_size
        return min(geometry.in_per_group * height, geometry.out_per_group * width)

    def check(self, geometry: Geometry) -> str | None:
        """Why a conv of this geometry cannot take the form, or None."""
        if len(geometry.kernel_size) == 2 and geometry.taps > 1 and 1 in geometry.kernel_size:
            return f"{geometry.kernel} kernel: a row or column is separated already"
        return super().check(geometry)

    def stages(self, geometry: Geometry) -> Stages:
        """The column, then the row."""
        inner = self._rank * geometry.groups
        vertical = dataclasses.replace(_along(geometry, 0), out_channels=inner, bias=False)
        return ("vertical", vertical), ("horizontal", dataclasses.replace(_along(geometry, 1), in_channels=inner))

    def matrices(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """One (C*kh, O*kw) matrix per group."""
        grouped: Tensor = weight.unflatten(0, (geometry.groups, -1))
        return grouped.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)

    def kernels(self, geometry: Geometry, factors: svd.Factors) -> list[tuple[Tensor, ...]]:
        """Vertical (R*groups, C/groups, kh, 1) and horizontal (O, R, 1, kw)."""
        height, width = geometry.kernel_size
        vertical = factors.left.transpose(1, 2).flatten(0, 1).unflatten(1, (-1, height))[..., None]
        horizontal = factors.right.unflatten(2, (-1, width)).transpose(1, 2).flatten(0, 1)
        return [(vertical, horizontal[:, :, None, :])]


@dataclass(frozen=True)
class Tucker(Branched):
    """1x1 to fewer channels, the window, 1x1 to all outputs.

    Args:
        rank: channels per group behind the window; those before it have the same share of the inputs, unless `inputs`
            says how many. A rule counts both.
    """

    name: ClassVar[str] = "tucker"
    word: ClassVar[str] = "tucker"

    inputs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inputs is not None and (isinstance(self.inputs, bool) or self.inputs < 1):
            raise FormError(f"Tucker: inputs must be at least 1, got {self.inputs}")

    @property
    def label(self) -> str:
        """`tucker rank 16`, with the width before the window where it was given."""
        return super().label + (f" from {self.inputs}" if self.inputs is not None else "")

    @property
    def branches(self) -> int:
        """One."""
        return 1

    def full_rank(self, geometry: Geometry) -> int:
        """Outputs of a group."""
        return geometry.out_per_group

    def inner(self, geometry: Geometry) -> int:
        """Channels per group before the window."""
        share = -(-self._rank * geometry.in_per_group // geometry.out_per_group)
        return min(share if self.inputs is None else self.inputs, geometry.in_per_group)

    def stages(self, geometry: Geometry) -> Stages:
        """Fewer channels, the window, all outputs."""
        groups, one = geometry.groups, (1, 1)
        inner, outer = self.inner(geometry) * groups, self._rank * groups
        reduce = Geometry(geometry.in_channels, inner, one, one, (0, 0), one, groups, "zeros", bias=False)
        core = dataclasses.replace(geometry, in_channels=inner, out_channels=outer, bias=False)
        expand = Geometry(outer, geometry.out_channels, one, one, (0, 0), one, groups, "zeros", bias=geometry.bias)
        return ("reduce", reduce), ("core", core), ("expand", expand)

    def matrices(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """One (C*kh*kw, O) matrix per group."""
        grouped: Tensor = weight.flatten(1).unflatten(0, (geometry.groups, -1))
        return grouped.transpose(1, 2)

    def energies(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """Energy of the whole core at each pair of an output and an input direction, largest first: (O, C) of a group.

        The core of a truncated higher-order SVD is the leading part of the whole one.
        """
        whole = dataclasses.replace(self, rank=geometry.out_per_group, inputs=geometry.in_per_group)
        return torch.stack([core.square().sum(2) for _, core, _ in whole._factored(geometry, weight)]).sum(0)

    def spectrum(self, geometry: Geometry, weight: Tensor, known: Spectra | None = None) -> Tensor:
        """Energy in each output direction, largest first: (O,) of a group, float64."""
        return self._recalled(geometry, weight, known).sum(1)

    def lost(self, geometry: Geometry, weight: Tensor, known: Spectra | None = None) -> float | None:
        """Share of the kernel's energy outside the core."""
        if self.init == "random" or weight.is_meta:
            return None
        energies = self._recalled(geometry, weight, known)
        total = float(energies.sum())
        kept = float(energies[: self._rank, : self.inner(geometry)].sum())
        return max(0.0, 1 - kept / total) if total > 0 else 0.0

    def fill(self, module: torch.nn.Module, geometry: Geometry, weight: Tensor, bias: Tensor | None) -> None:
        """Reduce (inner, C/groups, 1, 1), core (rank, inner, kh, kw), expand (O, rank, 1, 1)."""
        if self.init == "random" or weight.is_meta:
            return
        parts = [torch.cat(part) for part in zip(*self._factored(geometry, weight), strict=True)]
        self.assign(module, [self.stacked(geometry, *parts)], bias, weight.dtype)

    def stacked(self, geometry: Geometry, reduce: Tensor, core: Tensor, expand: Tensor) -> tuple[Tensor, ...]:
        """Matrices (inner, C), cores (rank, inner, taps) and matrices (O, rank), groups piled up, as conv kernels."""
        return reduce[..., None, None], core.unflatten(2, geometry.kernel_size), expand[..., None, None]

    def _factored(self, geometry: Geometry, weight: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Truncated higher-order SVD of every group: reduce (inner, C), core (rank, inner, taps), expand (O, rank)."""
        found = []
        for kernel in weight.detach().double().flatten(2).unflatten(0, (geometry.groups, -1)):
            outer = _leading(kernel, self._rank)
            inner = _leading(kernel.transpose(0, 1), self.inner(geometry))
            found.append((inner.T, torch.einsum("ock,oa,cb->abk", kernel, outer, inner), outer))
        return found


def _leading(kernel: Tensor, count: int) -> Tensor:
    """Orthonormal columns (N, count): the directions of most energy of a kernel along its first axis, largest first."""
    rows = kernel.flatten(1)
    vectors: Tensor = torch.linalg.eigh(rows @ rows.T)[1]
    return vectors.flip(1)[:, :count]


def _along(geometry: Geometry, axis: int) -> Geometry:
    """The part of a window that lies along one axis."""

    def part(values: tuple[int, ...], rest: int) -> tuple[int, ...]:
        return tuple(value if index == axis else rest for index, value in enumerate(values))

    padding = geometry.padding if isinstance(geometry.padding, str) else part(geometry.padding, 0)
    size, stride = part(geometry.kernel_size, 1), part(geometry.stride, 1)
    return dataclasses.replace(
        geometry, kernel_size=size, stride=stride, dilation=part(geometry.dilation, 1), padding=padding
    )
