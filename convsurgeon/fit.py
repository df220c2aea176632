r"""Least-squares fits of factored kernels in the metric of a covariance. Tensors only.

With `S` (C*K x C*K) the covariance of the patches a conv sees and `R` (O x C*K) that of its wanted outputs with them,
the kernel `W` that predicts the outputs best among those of a form minimises

    tr(W S W^T) - 2 tr(W R^T)          W[o, c, k] = sum_t mixing[t, o, c] * window[t, c or o, k]

which is quadratic in the mixings for fixed windows and the other way round: alternating least squares, He et al. 2019
(arXiv 1910.09455). Separable windows belong to input channels, so all outputs share one (T*C)^2 system for the mixings
and the windows are one (T*C*K)^2 system; blueprint windows belong to output channels, each of which has its own small
systems. Systems too large to factor are solved by conjugate gradients from the values at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from convsurgeon import factor

DIRECT_UNKNOWNS = 2304
"""Largest system of the separable windows that is factored rather than iterated on."""

DIRECT_MIXINGS = 192
"""Largest system per output channel of the blueprint mixings that is factored: there are O of them."""

CG_STEPS = 12
_JITTER = 1e-9


@dataclass(frozen=True)
class Normal:
    """Normal equations: `covariance` (C, K, C, K) of the patches, `cross` (O, C, K) of the outputs with them."""

    covariance: Tensor
    cross: Tensor

    def error(self, kernel: Tensor, energy: Tensor) -> Tensor:
        """Mean squared error per output (O,) of a kernel (O, C, K), given the outputs' own `energy` (O,)."""
        flat = kernel.flatten(1)
        size = flat.shape[1]
        quadratic = ((flat @ self.covariance.reshape(size, size)) * flat).sum(1)
        return energy - 2 * (flat * self.cross.flatten(1)).sum(1) + quadratic


def regress(normal: Normal) -> Tensor:
    """The dense kernel (O, C, K) that predicts best."""
    outputs, channels, taps = normal.cross.shape
    size = channels * taps
    solution = _solve(normal.covariance.reshape(size, size), normal.cross.reshape(outputs, size).T)
    return solution.T.reshape(outputs, channels, taps)


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


class Separable:
    """Mixings (T, O, C), windows (T, C, K): depthwise, then pointwise."""

    def start(self, kernel: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """The SVD of a dense kernel (O, C, K)."""
        factors = factor.truncate(kernel.transpose(0, 1), rank)
        return factors.left.permute(2, 1, 0).contiguous(), factors.right.transpose(0, 1).contiguous()

    def kernel(self, mixings: Tensor, windows: Tensor) -> Tensor:
        """The dense kernel (O, C, K) that the factors compute."""
        return torch.einsum("toc,tck->ock", mixings, windows)

    def mixings(self, normal: Normal, windows: Tensor, mixings: Tensor) -> Tensor:
        """The best mixings for given windows."""
        rank, channels, _ = windows.shape
        half = torch.einsum("ckdl,udl->ckud", normal.covariance, windows)
        system = torch.einsum("tck,ckud->tcud", windows, half).reshape(rank * channels, -1)
        right = torch.einsum("ock,tck->tco", normal.cross, windows).flatten(0, 1)
        return _solve(system, right).reshape(rank, channels, -1).transpose(1, 2).contiguous()

    def windows(self, normal: Normal, windows: Tensor, mixings: Tensor) -> Tensor:
        """The best windows for given mixings."""
        overlap = torch.einsum("toc,uod->tcud", mixings, mixings)
        right = torch.einsum("toc,ock->tck", mixings, normal.cross)
        if windows.numel() <= DIRECT_UNKNOWNS:
            system = overlap[:, :, None, :, :, None] * normal.covariance[None, :, :, None, :, :]
            return _solve(system.reshape(windows.numel(), -1), right.reshape(-1, 1)).reshape(windows.shape)

        def apply(x: Tensor) -> Tensor:
            """Sum over (u, d, l) of overlap[t, c, u, d] covariance[c, k, d, l] x[u, d, l]."""
            return torch.stack([_overlapping(normal.covariance, overlap[t], x) for t in range(len(x))])

        return conjugate_gradients(apply, right, windows, batch_dims=0)


class Blueprint:
    """Mixings (T, O, C), windows (T, O, K): pointwise, then depthwise."""

    def start(self, kernel: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """The SVD of a dense kernel (O, C, K)."""
        factors = factor.truncate(kernel, rank)
        return factors.left.permute(2, 0, 1).contiguous(), factors.right.transpose(0, 1).contiguous()

    def kernel(self, mixings: Tensor, windows: Tensor) -> Tensor:
        """The dense kernel (O, C, K) that the factors compute."""
        return torch.einsum("toc,tok->ock", mixings, windows)

    def mixings(self, normal: Normal, windows: Tensor, mixings: Tensor) -> Tensor:
        """The best mixings for given windows, output by output."""
        rank, outputs, taps = windows.shape
        channels = normal.cross.shape[1]
        right = torch.einsum("ock,tok->otc", normal.cross, windows)
        if rank * channels > DIRECT_MIXINGS:
            flat = normal.covariance.reshape(channels * taps, -1)

            def apply(x: Tensor) -> Tensor:
                dense = torch.einsum("otc,tok->ock", x, windows).flatten(1) @ flat
                return torch.einsum("ock,tok->otc", dense.unflatten(1, (channels, taps)), windows)

            solution = conjugate_gradients(apply, right, mixings.transpose(0, 1), batch_dims=1)
            return solution.transpose(0, 1).contiguous()
        pairs = torch.einsum("tok,uol->otukl", windows, windows).reshape(-1, taps * taps)
        by_taps = normal.covariance.permute(1, 3, 0, 2).reshape(taps * taps, -1)
        systems = (pairs @ by_taps).reshape(outputs, rank, rank, channels, channels).transpose(2, 3)
        solution = _solve(systems.reshape(outputs, rank * channels, -1), right.reshape(outputs, -1, 1))
        return solution.reshape(outputs, rank, channels).transpose(0, 1).contiguous()

    def windows(self, normal: Normal, windows: Tensor, mixings: Tensor) -> Tensor:
        """The best windows for given mixings, output by output."""
        rank, outputs, taps = windows.shape
        channels = normal.cross.shape[1]
        mixed = (mixings.flatten(0, 1) @ normal.covariance.reshape(channels, -1)).unflatten(0, (rank, outputs))
        mixed = mixed.unflatten(2, (taps, channels, taps))
        systems = torch.einsum("tokcl,uoc->otkul", mixed, mixings).reshape(outputs, rank * taps, -1)
        right = torch.einsum("toc,ock->otk", mixings, normal.cross).reshape(outputs, -1, 1)
        return _solve(systems, right).reshape(outputs, rank, taps).transpose(0, 1).contiguous()


class Subspace(Blueprint):
    """A blueprint whose mixings are kept at an inner width (of one group).

    After every least-squares step each branch's mixing matrix is cut to its best low rank in the metric of the
    channels' covariance (reduced-rank regression, Izenman 1975).
    """

    def __init__(self, width: int) -> None:
        self.width = width

    def start(self, kernel: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """The SVD of a dense kernel, cut."""
        mixings, windows = super().start(kernel, rank)
        return self._cut(mixings, torch.eye(mixings.shape[2], dtype=mixings.dtype)), windows

    def mixings(self, normal: Normal, windows: Tensor, mixings: Tensor) -> Tensor:
        """The best mixings for given windows, cut."""
        channels = normal.covariance.diagonal(dim1=1, dim2=3).sum(-1)
        return self._cut(super().mixings(normal, windows, mixings), channels)

    def _cut(self, mixings: Tensor, covariance: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(covariance)
        root = values.clamp(min=1e-12 * float(values[-1].clamp(min=1e-300))).sqrt()
        factors = factor.truncate((mixings @ vectors) * root, min(self.width, *mixings.shape[1:]))
        cut: Tensor = (factors.left @ factors.right / root) @ vectors.T
        return cut


Scheme = Separable | Blueprint


def alternate(scheme: Scheme, normal: Normal, mixings: Tensor, windows: Tensor, sweeps: int) -> tuple[Tensor, Tensor]:
    """So many rounds of windows, then mixings; the windows are kept orthonormal, which moves no kernel."""
    for _ in range(sweeps):
        windows = orthonormal(scheme.windows(normal, windows, mixings))
        mixings = scheme.mixings(normal, windows, mixings)
    return mixings, windows


def orthonormal(windows: Tensor) -> Tensor:
    """(T, channels, K) with the T windows of every channel orthonormal and spanning what they did."""
    basis, _ = torch.linalg.qr(windows.permute(1, 2, 0))
    ordered: Tensor = basis.permute(2, 0, 1).contiguous()
    return ordered


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], right: Tensor, start: Tensor, batch_dims: int, steps: int = CG_STEPS
) -> Tensor:
    """Solves `apply(x) = right` for a positive definite `apply`, from `start`; systems along the first dims at once."""
    dims = tuple(range(batch_dims, right.dim()))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dims, keepdim=True)

    x = start
    residual = right - apply(x)
    direction, size = residual, dot(residual, residual)
    for _ in range(steps):
        image = apply(direction)
        curvature = dot(direction, image)
        step = torch.where(curvature > 0, size / curvature, 0.0)
        x = x + step * direction
        residual = residual - step * image
        grown = dot(residual, residual)
        direction = residual + torch.where(size > 0, grown / size, 0.0) * direction
        size = grown
    return x


def _overlapping(covariance: Tensor, overlap: Tensor, x: Tensor) -> Tensor:
    """(C, K): for one branch t, overlap (C, T, C) and x (T, C, K)."""
    mixed = torch.einsum("cud,udl->cdl", overlap, x)
    return torch.einsum("ckdl,cdl->ck", covariance, mixed)


def _solve(systems: Tensor, right: Tensor) -> Tensor:
    """Solves (..., n, n) positive semi-definite systems for (..., n, m) right sides."""
    mean = systems.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None]
    jitter = _JITTER * torch.where(mean > 0, mean, 1.0)
    for _ in range(4):
        shifted = systems + torch.diag_embed(jitter.expand(systems.shape[:-1]))
        chol, info = torch.linalg.cholesky_ex(shifted)
        if not info.any():
            return torch.cholesky_solve(right, chol)
        jitter = jitter * 1000
    solution: Tensor = torch.linalg.lstsq(systems, right).solution
    return solution
