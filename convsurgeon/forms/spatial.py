"""Spatial: a kh x 1 conv to a few channels, then a 1 x kw conv. Dense convs, one branch.

The kernel as a (C*kh) x (O*kw) matrix of rank R. Jaderberg, Vedaldi & Zisserman 2014, "Speeding up convolutional neural
networks with low rank expansions", scheme 2. Exact at full rank under every padding: no bias stands before the last
conv, and padding one axis at a time gives the same borders as padding both. With groups everything holds group by
group, the rank too.

In the fit the row has a closed form: the regression of the outputs on what the column gives. The column is found by
conjugate gradients, preconditioned with the Kronecker product of what it couples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from convsurgeon.forms import svd
from convsurgeon.forms.branched import Stages
from convsurgeon.forms.factorised import Factorised
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.leastsquares import KroneckerSolver, Normal, Parts, orthonormal_rows
from convsurgeon.forms.systems import cholesky, conjugate_gradients, eigen, roots, solve


@dataclass(frozen=True)
class SpatialSeparable(Factorised):
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

    def parts(self, geometry: Geometry, factors: svd.Factors) -> list[Parts]:
        """Vertical (R, C, kh) and horizontal (O, R, kw) of every group."""
        height, width = geometry.kernel_size
        vertical = factors.left.transpose(1, 2).unflatten(2, (-1, height))
        horizontal = factors.right.unflatten(2, (-1, width)).transpose(1, 2)
        return list(zip(vertical, horizontal, strict=True))

    def scheme(self, geometry: Geometry) -> SpatialFit:
        """The row in closed form, the column by conjugate gradients."""
        return SpatialFit(self._rank, geometry.kernel_size[1])

    def kernels(self, geometry: Geometry, groups: Sequence[Parts]) -> list[tuple[Tensor, ...]]:
        """Vertical (R*groups, C/groups, kh, 1) and horizontal (O, R, 1, kw)."""
        vertical, horizontal = (torch.cat(part) for part in zip(*groups, strict=True))
        return [(vertical[..., None], horizontal[:, :, None, :])]


@dataclass(frozen=True)
class SpatialFit:
    """Vertical (R, C, kh), horizontal (O, R, kw); `width` is kw."""

    rank: int
    width: int

    def start(self, normal: Normal, dense: Tensor) -> Parts:
        """The SVD of the kernel between roots of the outputs' metric and of the channels' covariance, then the row."""
        across, inverse = roots(normal.channels)
        weighed = torch.einsum("po,ock,cd->pdk", roots(normal.metric)[0], dense, across).unflatten(2, (-1, self.width))
        columns = weighed.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)  # (C*kh, O*kw)
        left = eigen(columns @ columns.T)[1][:, -self.rank :]
        vertical = torch.einsum("dir,dc->rci", left.unflatten(0, (dense.shape[1], -1)), inverse)
        return vertical, self._horizontal(normal, vertical)

    def kernel(self, factors: Parts) -> Tensor:
        """(O, C, K)."""
        return torch.einsum("rci,orj->ocij", *factors).flatten(2)

    def sweep(self, normal: Normal, factors: Parts) -> Parts:
        """The column, then the row."""
        vertical = orthonormal_rows(self._vertical(normal, *factors))
        return vertical, self._horizontal(normal, vertical)

    def _horizontal(self, normal: Normal, vertical: Tensor) -> Tensor:
        """The regression of the outputs on what the column gives."""
        rank, channels, height = vertical.shape
        shape = (channels, height, self.width)
        covariance = normal.covariance.reshape(*shape, *shape)
        half = torch.einsum("rci,cijdlm->rjdlm", vertical, covariance)
        system = torch.einsum("rjdlm,sdl->rjsm", half, vertical).reshape(rank * self.width, -1)
        right = torch.einsum("ocij,rci->rjo", normal.cross.unflatten(2, shape[1:]), vertical).flatten(0, 1)
        return solve(system, right).reshape(rank, self.width, -1).permute(2, 0, 1).contiguous()

    def _vertical(self, normal: Normal, vertical: Tensor, horizontal: Tensor) -> Tensor:
        """Conjugate gradients over (R, C, kh)."""
        height = vertical.shape[2]
        shape = (height, self.width)

        def project(dense: Tensor) -> Tensor:
            return torch.einsum("ocij,orj->rci", dense.unflatten(2, shape), horizontal)

        def apply(x: Tensor) -> Tensor:
            return project(normal.pulled(self.kernel((x, horizontal))))

        weighed = (normal.metric @ horizontal.flatten(1)).reshape(horizontal.shape)
        inner = torch.einsum("orj,osj->rs", weighed, horizontal)
        size = vertical.shape[1] * height
        outer = normal.covariance.unflatten(3, shape).unflatten(1, shape).diagonal(dim1=2, dim2=5).mean(-1)
        precondition = KroneckerSolver(cholesky(inner), cholesky(outer.reshape(size, size)))
        return conjugate_gradients(apply, project(normal.wanted), vertical, precondition, normal.steps)


def _along(geometry: Geometry, axis: int) -> Geometry:
    """The part of a window that lies along one axis."""

    def part(values: tuple[int, ...], rest: int) -> tuple[int, ...]:
        return tuple(value if index == axis else rest for index, value in enumerate(values))

    padding = geometry.padding if isinstance(geometry.padding, str) else part(geometry.padding, 0)
    size, stride = part(geometry.kernel_size, 1), part(geometry.stride, 1)
    return dataclasses.replace(
        geometry, kernel_size=size, stride=stride, dilation=part(geometry.dilation, 1), padding=padding
    )
