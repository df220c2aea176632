"""Tucker: inputs to fewer channels by a 1x1 conv, the window on those, then to all outputs by a 1x1 conv.

The factors are those of the truncated higher-order SVD over inputs and outputs; Kim et al. 2016 (arXiv 1511.06530).
Exact at full rank under every padding: no bias stands before the last conv. With groups everything holds group by
group, the rank too.

In the fit core and expansion are the regression of the outputs on the reduced patches, of reduced rank in the metric of
the outputs (Izenman 1975). The reduction is found by conjugate gradients, preconditioned with the Kronecker product of
what it couples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from convsurgeon.base.errors import FormError
from convsurgeon.forms.branched import Known, Stages
from convsurgeon.forms.factorised import Factorised
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.leastsquares import KroneckerSolver, Normal, Parts, orthonormal_rows
from convsurgeon.forms.systems import cholesky, conjugate_gradients, eigen, roots, solve


@dataclass(frozen=True)
class Tucker(Factorised):
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
        inner, outer = self.inner(geometry) * geometry.groups, self._rank * geometry.groups
        reduce = geometry.pointwise(geometry.in_channels, inner, bias=False)
        core = dataclasses.replace(geometry, in_channels=inner, out_channels=outer, bias=False)
        expand = geometry.pointwise(outer, geometry.out_channels, bias=geometry.bias)
        return ("reduce", reduce), ("core", core), ("expand", expand)

    def energies(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """Energy of the whole core at each pair of an output and an input direction, largest first: (O, C) of a group.

        The core of a truncated higher-order SVD is the leading part of the whole one.
        """
        whole = dataclasses.replace(self, rank=geometry.out_per_group, inputs=geometry.in_per_group)
        return torch.stack([core.square().sum(2) for _, core, _ in whole.factored(geometry, weight)]).sum(0)

    def spectrum(self, geometry: Geometry, weight: Tensor, known: Known | None = None) -> Tensor:
        """Energy in each output direction, largest first: (O,) of a group, float64."""
        return self._recalled(geometry, weight, known).sum(1)

    def lost(self, geometry: Geometry, weight: Tensor, known: Known | None = None) -> float | None:
        """Share of the kernel's energy outside the core."""
        if self.init == "random" or weight.is_meta:
            return None
        energies = self._recalled(geometry, weight, known)
        total = float(energies.sum())
        kept = float(energies[: self._rank, : self.inner(geometry)].sum())
        return max(0.0, 1 - kept / total) if total > 0 else 0.0

    def scheme(self, geometry: Geometry) -> TuckerFit:
        """Core and expansion in closed form, the reduction by conjugate gradients."""
        return TuckerFit(self._rank, self.inner(geometry))

    def kernels(self, geometry: Geometry, groups: Sequence[Parts]) -> list[tuple[Tensor, ...]]:
        """Reduce (inner, C/groups, 1, 1), core (rank, inner, kh, kw), expand (O, rank, 1, 1), groups piled up."""
        reduce, core, expand = (torch.cat(part) for part in zip(*groups, strict=True))
        return [(reduce[..., None, None], core.unflatten(2, geometry.kernel_size), expand[..., None, None])]

    def factored(self, geometry: Geometry, weight: Tensor, known: Known | None = None) -> list[Parts]:
        """Truncated higher-order SVD of every group: reduce (inner, C), core (rank, inner, taps), expand (O, rank)."""
        found: list[Parts] = []
        for kernel in weight.detach().double().flatten(2).unflatten(0, (geometry.groups, -1)):
            outer = _leading(kernel, self._rank)
            inner = _leading(kernel.transpose(0, 1), self.inner(geometry))
            found.append((inner.T, torch.einsum("ock,oa,cb->abk", kernel, outer, inner), outer))
        return found


@dataclass(frozen=True)
class TuckerFit:
    """Reduce (inner, C), core (R, inner, K), expand (O, R)."""

    rank: int
    inner: int

    def start(self, normal: Normal, dense: Tensor) -> Parts:
        """The inputs' subspace by SVD in the metrics, then the reduced-rank regression on it."""
        across, inverse = roots(normal.channels)
        weighed = torch.einsum("po,ock,cd->dpk", roots(normal.metric)[0], dense, across).flatten(1)
        reduce = eigen(weighed @ weighed.T)[1][:, -self.inner :].T @ inverse
        return reduce, *self._rest(normal, reduce)

    def kernel(self, factors: Parts) -> Tensor:
        """(O, C, K)."""
        reduce, core, expand = factors
        return torch.einsum("bc,abk,oa->ock", reduce, core, expand)

    def sweep(self, normal: Normal, factors: Parts) -> Parts:
        """The first 1x1 conv, then the others."""
        reduce = orthonormal_rows(self._reduce(normal, factors))
        return reduce, *self._rest(normal, reduce)

    def _rest(self, normal: Normal, reduce: Tensor) -> Parts:
        """Core and expand: regression of the outputs on the reduced patches, of reduced rank."""
        inner, taps = len(reduce), normal.cross.shape[2]
        half = torch.einsum("bc,ckdl->bkdl", reduce, normal.covariance)
        system = torch.einsum("bkdl,ed->bkel", half, reduce).reshape(inner * taps, -1)
        right = torch.einsum("ock,bc->bko", normal.cross, reduce).flatten(0, 1)
        dense = solve(system, right).T
        root, inverse = roots(normal.metric)
        weighed = root @ dense
        left = eigen(weighed @ system @ weighed.T)[1][:, -self.rank :]
        return (left.T @ weighed).unflatten(1, (inner, taps)), inverse @ left

    def _reduce(self, normal: Normal, factors: Parts) -> Tensor:
        """Conjugate gradients over (inner, C)."""
        reduce, core, expand = factors
        behind = torch.einsum("oa,abk->obk", expand, core)

        def project(dense: Tensor) -> Tensor:
            return torch.einsum("ock,obk->bc", dense, behind)

        def apply(x: Tensor) -> Tensor:
            return project(normal.pulled(torch.einsum("bc,obk->ock", x, behind)))

        weighed = (normal.metric @ behind.flatten(1)).reshape(behind.shape)
        inner = torch.einsum("obk,oek->be", weighed, behind)
        outer = normal.channels
        precondition = KroneckerSolver(cholesky(inner), cholesky(outer))
        return conjugate_gradients(apply, project(normal.wanted), reduce, precondition, normal.steps)


def _leading(kernel: Tensor, count: int) -> Tensor:
    """Orthonormal columns (N, count): the directions of most energy of a kernel along its first axis, largest first."""
    rows = kernel.flatten(1)
    vectors: Tensor = eigen(rows @ rows.T)[1]
    return vectors.flip(1)[:, :count]
