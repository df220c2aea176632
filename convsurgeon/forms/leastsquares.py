r"""Least-squares fits of factored kernels in the metric of two covariances. Tensors only.

With `S` (C*K x C*K) the covariance of the patches a conv sees, `R` (O x C*K) that of its wanted outputs with them and
`M` (O x O) what errors of the outputs cost the network, the kernel that predicts the outputs best among those of a form
minimises

    tr(M W S W^T) - 2 tr(M W R^T)          W[o, c, k] = sum_t mixing[t, o, c] * window[t, c or o, k]

which is quadratic in the mixings for fixed windows and the other way round: alternating least squares, He et al. 2019
(arXiv 1910.09455), there without `M`. Separable windows belong to input channels, so all outputs share one (T*C)^2
system for the mixings, which `M` leaves alone, and the windows are one (T*C*K)^2 system. Blueprint windows belong to
output channels: without `M` each output is a problem of its own, with it they are coupled. Systems too large to factor
are solved by conjugate gradients from the values at hand, preconditioned with their blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from convsurgeon.forms import svd
from convsurgeon.forms.systems import CG_STEPS, cholesky, conjugate_gradients, roots, solve

DIRECT_UNKNOWNS = 512
"""Largest joint system of windows that is factored rather than iterated on."""

DIRECT_MIXINGS = 256
"""Largest system per output channel of the blueprint mixings that is factored: there are O of them."""

STEP_MACS = 3e9
"""What the steps of one system may cost in all: layers of 256 channels and more take fewer, from ever better starts."""

_LEAST_STEPS = 3

Factors = tuple[Tensor, Tensor]
"""Mixings (T, O, C) and windows (T, C or O, K)."""

Parts = tuple[Tensor, ...]
"""A form's factors, whatever they are."""


@dataclass(frozen=True)
class Normal:
    """The problem: `covariance` (C, K, C, K) of patches, `cross` (O, C, K) of outputs with them, `metric` (O, O)."""

    covariance: Tensor
    cross: Tensor
    metric: Tensor

    @property
    def square(self) -> Tensor:
        """The covariance as a matrix (C*K, C*K)."""
        size = self.cross[0].numel()
        return self.covariance.reshape(size, size)

    @property
    def steps(self) -> int:
        """How many steps of conjugate gradients are worth their price, where each computes `M W S`."""
        return int(min(CG_STEPS, max(_LEAST_STEPS, STEP_MACS // (self.cross.numel() * self.cross[0].numel()))))

    def cost(self, kernel: Tensor) -> float:
        """What the fit minimises, of a kernel (O, C, K): its squared error in the metric but for a constant."""
        return float((kernel * (self.pulled(kernel) - 2 * self.wanted)).sum())

    def regress(self) -> Tensor:
        """The dense kernel (O, C, K) that predicts best; the metric does not change it."""
        return solve(self.square, self.cross.flatten(1).T).T.reshape(self.cross.shape)

    def pulled(self, kernel: Tensor) -> Tensor:
        """`M W S` (O, C, K)."""
        return (self.metric @ (kernel.flatten(1) @ self.square)).reshape(kernel.shape)

    @property
    def wanted(self) -> Tensor:
        """`M R` (O, C, K)."""
        return (self.metric @ self.cross.flatten(1)).reshape(self.cross.shape)


class Scheme(Protocol):
    """How a form's factors are fitted."""

    def start(self, normal: Normal, dense: Tensor) -> Any:
        """Factors near a dense kernel (O, C, K)."""

    def kernel(self, factors: Any) -> Tensor:
        """The dense kernel (O, C, K) that factors compute."""

    def sweep(self, normal: Normal, factors: Any) -> Any:
        """Better factors: one round over all of them."""


def oas_ridge(covariance: Tensor, samples: int) -> float:
    """How far to shrink a covariance (p, p) towards its mean variance, from the data alone.

    Chen, Wiesel, Eldar & Hero 2010, "Shrinkage algorithms for MMSE covariance estimation", equation 23.

    Returns:
        The ridge to add to the diagonal, so that `S + ridge * I` has the proportions of the shrunk estimate.
    """
    size = covariance.shape[0]
    trace, square = float(covariance.trace()), float(covariance.square().sum())
    if trace <= 0:
        return 1.0
    spread = square - trace**2 / size
    share = ((1 - 2 / size) * square + trace**2) / ((samples + 1 - 2 / size) * spread) if spread > 0 else 1.0
    share = min(max(share, 1e-8), 0.5)
    return share / (1 - share) * trace / size


@dataclass(frozen=True)
class Separable:
    """Mixings (T, O, C), windows (T, C, K): depthwise, then pointwise."""

    rank: int

    def start(self, normal: Normal, dense: Tensor) -> Factors:
        """Windows from the SVD of `M^1/2 W[:, c] S_cc^1/2` for every channel, then the best mixings for them."""
        root, inverse = roots(normal.covariance.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
        weighed = roots(normal.metric)[0] @ dense.transpose(0, 1) @ root
        windows = orthonormal((_leading(weighed, self.rank) @ inverse).transpose(0, 1))
        return self._mixings(normal, windows), windows

    def kernel(self, factors: Factors) -> Tensor:
        """(O, C, K)."""
        return torch.einsum("toc,tck->ock", *factors)

    def sweep(self, normal: Normal, factors: Factors) -> Factors:
        """Windows, then mixings."""
        windows = orthonormal(self._windows(normal, factors))
        return self._mixings(normal, windows), windows

    def _mixings(self, normal: Normal, windows: Tensor) -> Tensor:
        """One (T*C)^2 system for all outputs."""
        rank, channels, _ = windows.shape
        half = torch.stack([(normal.covariance * window).sum(-1) for window in windows])  # (U, C, K, D)
        system = torch.einsum("tck,uckd->tcud", windows, half).reshape(rank * channels, -1)
        right = torch.einsum("ock,tck->tco", normal.cross, windows).flatten(0, 1)
        return solve(system, right).reshape(rank, channels, -1).transpose(1, 2).contiguous()

    def _windows(self, normal: Normal, factors: Factors) -> Tensor:
        """One (T*C*K)^2 system."""
        mixings, windows = factors
        right = torch.einsum("toc,ock->tck", mixings, normal.wanted)
        weighed = normal.metric @ mixings
        if windows.numel() <= DIRECT_UNKNOWNS:
            overlap = torch.einsum("toc,uod->tcud", weighed, mixings)
            system = overlap[:, :, None, :, :, None] * normal.covariance[None, :, :, None, :, :]
            return solve(system.reshape(windows.numel(), -1), right.reshape(-1, 1)).reshape(windows.shape)
        blocks = normal.covariance.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        own = torch.einsum("toc,uoc->ctu", weighed, mixings)
        systems = (own[:, :, None, :, None] * blocks[:, None, :, None, :]).reshape(len(own), right[:, 0].numel(), -1)

        coupling = torch.einsum("toc,uod->ctdu", weighed, mixings).flatten(2)
        by_channel = normal.covariance.flatten(2)  # (D, L, C*K): it is symmetric

        def apply(x: Tensor) -> Tensor:  # without the dense kernel, in O(C^2 K^2 T)
            moved = torch.bmm(x.transpose(0, 1), by_channel).reshape(-1, *x.shape[1:])
            return torch.bmm(coupling, moved.transpose(0, 1)).transpose(0, 1)

        return conjugate_gradients(apply, right, windows, _RowSolver(cholesky(systems)))


@dataclass(frozen=True)
class Blueprint:
    """Mixings (T, O, C), windows (T, O, K): pointwise, then depthwise."""

    rank: int

    def start(self, normal: Normal, dense: Tensor) -> Factors:
        """Windows from the SVD of `W[o]` between roots of the covariance's marginals, then mixings."""
        across = normal.covariance.diagonal(dim1=1, dim2=3).mean(-1)
        root, inverse = roots(normal.covariance.diagonal(dim1=0, dim2=2).mean(-1))
        windows = orthonormal((_leading(roots(across)[0] @ dense @ root, self.rank) @ inverse).transpose(0, 1))
        return self._mixings(normal, (torch.einsum("ock,tok->toc", dense, windows), windows)), windows

    def kernel(self, factors: Factors) -> Tensor:
        """(O, C, K)."""
        return torch.einsum("toc,tok->ock", *factors)

    def sweep(self, normal: Normal, factors: Factors) -> Factors:
        """Windows, then mixings, which first follow the windows' change of basis."""
        moved = self._windows(normal, factors)
        windows = orthonormal(moved)
        mixings = torch.einsum("uoc,uok,tok->toc", factors[0], moved, windows)
        return self._mixings(normal, (mixings, windows)), windows

    def _mixings(self, normal: Normal, factors: Factors) -> Tensor:
        """Conjugate gradients over all outputs; the preconditioner solves each output's own system."""
        mixings, windows = factors
        channels = mixings.shape[2]

        def apply(x: Tensor) -> Tensor:
            return torch.einsum("ock,tok->toc", normal.pulled(self.kernel((x, windows))), windows)

        right = torch.einsum("ock,tok->toc", normal.wanted, windows)
        weight = normal.metric.diagonal()
        if self.rank * channels <= DIRECT_MIXINGS:
            precondition = _RowSolver(cholesky(self._own_mixings(normal, windows) * weight[:, None, None]))
            return conjugate_gradients(apply, right, mixings, precondition, normal.steps)
        across = cholesky(normal.covariance.diagonal(dim1=1, dim2=3).mean(-1))  # the windows are orthonormal

        def shared(x: Tensor) -> Tensor:
            rows = (x / weight[:, None]).flatten(0, 1)
            return torch.cholesky_solve(rows.T, across).T.reshape(x.shape)

        return conjugate_gradients(apply, right, mixings, shared, normal.steps)

    def _own_mixings(self, normal: Normal, windows: Tensor) -> Tensor:
        """Systems (O, T*C, T*C) of single outputs."""
        rank, outputs, taps = windows.shape
        channels = len(normal.covariance)
        pairs = torch.einsum("tok,uol->otukl", windows, windows).reshape(-1, taps * taps)
        by_taps = normal.covariance.permute(1, 3, 0, 2).reshape(taps * taps, -1)
        systems = (pairs @ by_taps).reshape(outputs, rank, rank, channels, channels).transpose(2, 3)
        return systems.reshape(outputs, rank * channels, -1)

    def _windows(self, normal: Normal, factors: Factors) -> Tensor:
        """One (T*O*K)^2 system, or conjugate gradients with the outputs' own systems before them."""
        mixings, windows = factors
        rank, outputs, taps = windows.shape
        channels = mixings.shape[2]
        right = torch.einsum("toc,ock->tok", mixings, normal.wanted)
        flat = mixings.flatten(0, 1)
        mixed = (flat @ normal.covariance.reshape(channels, -1)).reshape(rank, outputs, taps, channels, taps)
        if windows.numel() <= DIRECT_UNKNOWNS:
            system = (mixed.transpose(3, 4).reshape(-1, channels) @ flat.T).unflatten(0, (rank, outputs, taps, taps))
            system = system.unflatten(-1, (rank, outputs)).permute(0, 1, 2, 4, 5, 3)
            system = system * normal.metric[None, :, None, None, :, None]
            return solve(system.reshape(windows.numel(), -1), right.reshape(-1, 1)).reshape(windows.shape)
        own = torch.einsum("tokcl,uoc->otkul", mixed, mixings).reshape(outputs, rank * taps, -1)

        def apply(x: Tensor) -> Tensor:
            return torch.einsum("toc,ock->tok", mixings, normal.pulled(self.kernel((mixings, x))))

        precondition = _RowSolver(cholesky(own * normal.metric.diagonal()[:, None, None]))
        return conjugate_gradients(apply, right, windows, precondition, normal.steps)


@dataclass(frozen=True)
class Subspace(Blueprint):
    """A blueprint whose mixings are kept at an inner `width` (of one group).

    After every least-squares step each branch's mixing matrix is cut to its best low rank in the metrics of the
    outputs and of the channels' covariance (reduced-rank regression, Izenman 1975).
    """

    width: int

    def sweep(self, normal: Normal, factors: Factors) -> Factors:
        """One round, if it helps: the cut is a projection, not the minimum."""
        moved = super().sweep(normal, factors)
        return moved if normal.cost(self.kernel(moved)) < normal.cost(self.kernel(factors)) else factors

    def _mixings(self, normal: Normal, factors: Factors) -> Tensor:
        mixings = super()._mixings(normal, factors)
        left, left_inverse = roots(normal.metric)
        right, right_inverse = roots(normal.covariance.diagonal(dim1=1, dim2=3).sum(-1))
        parts = svd.truncate(left @ mixings @ right, min(self.width, *mixings.shape[1:]))
        cut: Tensor = left_inverse @ (parts.left @ parts.right) @ right_inverse
        return cut


def alternate(scheme: Scheme, normal: Normal, factors: Parts, sweeps: int) -> Parts:
    """So many sweeps."""
    for _ in range(sweeps):
        factors = scheme.sweep(normal, factors)
    return factors


def orthonormal(windows: Tensor) -> Tensor:
    """(T, channels, K) with the T windows of every channel orthonormal and spanning what they did."""
    basis, _ = torch.linalg.qr(windows.permute(1, 2, 0))
    ordered: Tensor = basis.permute(2, 0, 1).contiguous()
    return ordered


def _leading(matrices: Tensor, rank: int) -> Tensor:
    """(B, T, N): leading right singular vectors of (B, M, N), through their N x N Gram matrices."""
    _, vectors = torch.linalg.eigh(matrices.mT @ matrices)
    leading: Tensor = vectors[..., -rank:].mT.flip(-2)
    return leading


@dataclass(frozen=True)
class _RowSolver:
    """Solves each row's own system, given its Cholesky factor: (R, T*N, T*N) for values (T, R, N)."""

    chol: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        rank, rows, size = x.shape
        flat = x.transpose(0, 1).reshape(rows, -1, 1)
        return torch.cholesky_solve(flat, self.chol).reshape(rows, rank, size).transpose(0, 1)
