r"""Least-squares fits of the low-rank dense forms, in the same two metrics as `fit`. Tensors only.

Here most factors have closed forms. With the first convs fixed, what they give is what the last ones regress on: freely
for the row of a spatial form, at reduced rank in the metric of the outputs for Tucker (Izenman 1975). The first factor,
given the others, is found by conjugate gradients; its preconditioner is the Kronecker product of what it couples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convsurgeon.forms.leastsquares import Normal
from convsurgeon.forms.systems import cholesky, conjugate_gradients, roots, solve

Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class Spatial:
    """Vertical (R, C, kh), horizontal (O, R, kw); `width` is kw."""

    rank: int
    width: int

    def start(self, normal: Normal, dense: Tensor) -> Parts:
        """The SVD of the kernel between roots of the outputs' metric and of the channels' covariance, then the row."""
        across, inverse = roots(normal.covariance.diagonal(dim1=1, dim2=3).mean(-1))
        weighed = torch.einsum("po,ock,cd->pdk", roots(normal.metric)[0], dense, across).unflatten(2, (-1, self.width))
        columns = weighed.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)  # (C*kh, O*kw)
        left = torch.linalg.eigh(columns @ columns.T)[1][:, -self.rank :]
        vertical = torch.einsum("dir,dc->rci", left.unflatten(0, (dense.shape[1], -1)), inverse)
        return vertical, self._horizontal(normal, vertical)

    def kernel(self, factors: Parts) -> Tensor:
        """(O, C, K)."""
        return torch.einsum("rci,orj->ocij", *factors).flatten(2)

    def sweep(self, normal: Normal, factors: Parts) -> Parts:
        """The column, then the row."""
        vertical = _orthonormal(self._vertical(normal, *factors))
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
        precondition = _Kronecker(cholesky(inner), cholesky(outer.reshape(size, size)))
        return conjugate_gradients(apply, project(normal.wanted), vertical, precondition, normal.steps)


@dataclass(frozen=True)
class TuckerTwo:
    """Reduce (inner, C), core (R, inner, K), expand (O, R)."""

    rank: int
    inner: int

    def start(self, normal: Normal, dense: Tensor) -> Parts:
        """The inputs' subspace by SVD in the metrics, then the reduced-rank regression on it."""
        across, inverse = roots(normal.covariance.diagonal(dim1=1, dim2=3).mean(-1))
        weighed = torch.einsum("po,ock,cd->dpk", roots(normal.metric)[0], dense, across).flatten(1)
        reduce = torch.linalg.eigh(weighed @ weighed.T)[1][:, -self.inner :].T @ inverse
        return reduce, *self._rest(normal, reduce)

    def kernel(self, factors: Parts) -> Tensor:
        """(O, C, K)."""
        reduce, core, expand = factors
        return torch.einsum("bc,abk,oa->ock", reduce, core, expand)

    def sweep(self, normal: Normal, factors: Parts) -> Parts:
        """The first 1x1 conv, then the others."""
        reduce = _orthonormal(self._reduce(normal, factors))
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
        left = torch.linalg.eigh(weighed @ system @ weighed.T)[1][:, -self.rank :]
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
        outer = normal.covariance.diagonal(dim1=1, dim2=3).mean(-1)
        precondition = _Kronecker(cholesky(inner), cholesky(outer))
        return conjugate_gradients(apply, project(normal.wanted), reduce, precondition, normal.steps)


@dataclass(frozen=True)
class _Kronecker:
    """Solves with the Kronecker product of two matrices, given their Cholesky factors, for values (R, ...)."""

    inner: Tensor
    outer: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        rows = torch.cholesky_solve(x.flatten(1), self.inner)
        return torch.cholesky_solve(rows.T, self.outer).T.reshape(x.shape)


def _orthonormal(values: Tensor) -> Tensor:
    """(R, ...) with orthonormal rows that span what they did."""
    basis, _ = torch.linalg.qr(values.flatten(1).T)
    rows: Tensor = basis.T.reshape(values.shape).contiguous()
    return rows
