"""Positive semi-definite systems: factored with as much jitter as it takes, or iterated on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CG_STEPS = 12
"""Steps of conjugate gradients from the values at hand."""

_CG_TOLERANCE = 1e-2
_JITTER = {torch.float64: 1e-9, torch.float32: 1e-6}
_FLOOR = 1e-6
"""Smallest eigenvalue that `roots` tells from zero, as a share of the largest."""


def cholesky(systems: Tensor) -> Tensor:
    """Return the lower factor of (..., n, n) positive semi-definite systems, jittered until it exists.

    Raises:
        FloatingPointError: a system that is far from positive, or not finite.
    """
    mean = systems.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None]
    jitter = _JITTER[systems.dtype] * torch.where(mean > 0, mean, 1.0)
    for _ in range(4):
        jittered = systems.clone()  # a wide one takes hundreds of megabytes: no second copy beside it
        jittered.diagonal(dim1=-2, dim2=-1).add_(jitter)
        chol, info = torch.linalg.cholesky_ex(jittered)
        if not info.any():
            factor: Tensor = chol
            return factor
        jitter = jitter * 1000
    raise FloatingPointError("a covariance of the calibration data is not positive semi-definite")


def inverse(system: Tensor) -> Tensor:
    """Return the inverse of a positive semi-definite system (n, n): a product with it costs less than a solution."""
    return torch.cholesky_inverse(cholesky(system))


def solve(systems: Tensor, right: Tensor) -> Tensor:
    """Solve (..., n, n) positive semi-definite systems for (..., n, m) right sides."""
    return torch.cholesky_solve(right, cholesky(systems))


def eigen(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, smallest first, and eigenvectors of symmetric (..., n, n) matrices of any scale.

    LAPACK's driver for float32 fails or returns NaN on matrices of nearly dead channels, and so does that for float64
    once entries are tiny; so they are scaled to 1 and decomposed in float64, if need be with a jitter.

    Raises:
        FloatingPointError: they are not finite.
    """
    values, vectors = _decomposed(matrices, lambda scaled: tuple(torch.linalg.eigh(scaled)))
    return values, vectors


def eigenvalues(matrices: Tensor) -> Tensor:
    """Return the eigenvalues alone, which is faster."""
    return _decomposed(matrices, lambda scaled: (torch.linalg.eigvalsh(scaled),))[0]


def _decomposed(matrices: Tensor, decompose: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return what a decomposition gives for matrices scaled to 1; eigenvalues, which come first, are scaled back."""
    exact = matrices.detach().double()
    size = exact.abs().amax(dim=(-2, -1), keepdim=True)
    if not bool(size.isfinite().all()):
        raise FloatingPointError("a matrix of the data is not finite")
    scaled = exact / torch.where(size > 0, size, 1.0)
    for jitter in (0.0, 1e-14, 1e-12):
        shift = jitter * torch.linspace(0, 1, exact.shape[-1], dtype=exact.dtype, device=exact.device)
        try:
            values, *others = decompose(scaled + torch.diag_embed(shift))
        except RuntimeError:  # LinAlgError
            continue
        if all(bool(found.isfinite().all()) for found in (values, *others)):
            break
    else:
        raise FloatingPointError("a matrix of the data has no eigenvectors")
    return tuple(found.to(matrices.dtype) for found in (values * size[..., 0], *others))


def roots(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return square roots of (..., n, n) positive semi-definite matrices and their inverses: `S = root @ root.mT`."""
    values, vectors = eigen(matrices)
    values = torch.maximum(values, values[..., -1:].clamp(min=0) * _FLOOR + 1e-30)
    root = values.sqrt()[..., None, :]
    return (vectors * root) @ vectors.mT, (vectors / root) @ vectors.mT


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    steps: int = CG_STEPS,
) -> Tensor:
    """Solve `apply(x) = right` for a positive semi-definite `apply`, from `start`.

    The energy `x . apply(x) / 2 - x . right` never rises from step to step (Hestenes & Stiefel 1952).
    """
    x, residual = start, right - apply(start)
    direction = shifted = precondition(residual)
    size = first = float((residual * shifted).sum())
    for _ in range(steps):
        image = apply(direction)
        curvature = float((direction * image).sum())
        if size <= _CG_TOLERANCE**2 * first or curvature <= 0:
            break
        x, residual = x + size / curvature * direction, residual - size / curvature * image
        shifted = precondition(residual)
        grown = float((residual * shifted).sum())
        direction, size = shifted + grown / size * direction, grown
    return x
