r"""The least-squares problem that all fits share: factored kernels in the metric of two covariances. Tensors only.

With `S` (C*K x C*K) the covariance of the patches a conv sees, `R` (O x C*K) that of its wanted outputs with them and
`M` (O x O) what errors of the outputs cost the network, the kernel that predicts the outputs best among those of a form
minimises

    tr(M W S W^T) - 2 tr(M W R^T)

which is quadratic in each factor of `W` for fixed others: alternating least squares, He et al. 2019 (arXiv 1910.09455),
there without `M`. Every form's file holds its `Scheme`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from convsurgeon.forms.covariance import Covariance
from convsurgeon.forms.systems import CG_STEPS, cholesky, solve

DIRECT_UNKNOWNS = 512
"""Largest joint system of windows that is factored; larger ones are solved by iteration."""

STEP_MACS = 3e9
"""What the steps of one system may cost in all; layers of 256 channels and more take fewer steps."""

_LEAST_STEPS = 3

DOUBLE_UNKNOWNS = 1200
"""Patches of more values are fitted in float32, at half the price; the ridge keeps them well conditioned."""

Parts = tuple[Tensor, ...]
"""A form's factors, whatever they are."""


def precision(unknowns: int) -> torch.dtype:
    """Return what a problem of so many unknowns per output is solved in."""
    return torch.float64 if unknowns <= DOUBLE_UNKNOWNS else torch.float32


@dataclass(frozen=True)
class Normal:
    """The problem.

    Args:
        spread: covariance (C*K, C*K) of the patches, positive definite, however it is held.
        cross: of the wanted outputs with them (O, C, K).
        metric: of the outputs (O, O), positive definite.
        regression: the dense kernel (O, C, K) that predicts best, where it is known already.
        effort: the share of the usual steps that a fit may take, where a rough one does.

    `shared` is what fits of other ranks to the same problem can use again, by name; another problem begins without.
    """

    spread: Covariance
    cross: Tensor
    metric: Tensor
    regression: Tensor | None = None
    effort: float = 1.0
    shared: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def covariance(self) -> Tensor:
        """The covariance by channels and taps (C, K, C, K)."""
        return self.spread.values.reshape(*self.cross.shape[1:], *self.cross.shape[1:])

    @cached_property
    def marginals(self) -> tuple[Tensor, Tensor]:
        """The covariance of channels (C, C), averaged over taps, and of taps (K, K), averaged over channels."""
        return self.spread.marginals(self.cross.shape[2])

    @property
    def channels(self) -> Tensor:
        """The covariance of channels (C, C)."""
        return self.marginals[0]

    @property
    def taps(self) -> Tensor:
        """The covariance of taps (K, K)."""
        return self.marginals[1]

    @property
    def steps(self) -> int:
        """Return how many steps of conjugate gradients are worth their price, where each computes `M W S`."""
        return int(min(CG_STEPS, max(_LEAST_STEPS, STEP_MACS // (self.cross.numel() * self.cross[0].numel()))))

    def cost(self, kernel: Tensor) -> float:
        """Return what the fit minimises for a kernel (O, C, K): its squared error in the metric, up to a constant."""
        return float((kernel * (self.pulled(kernel) - 2 * self.wanted)).sum())

    def regress(self) -> Tensor:
        """Return the dense kernel (O, C, K) that predicts best; the metric does not change it."""
        if self.regression is not None:
            return self.regression
        return solve(self.spread.values, self.cross.flatten(1).T).T.reshape(self.cross.shape)

    def pulled(self, kernel: Tensor) -> Tensor:
        """Return `M W S` (O, C, K)."""
        return (self.metric @ self.spread.times(kernel.flatten(1))).reshape(kernel.shape)

    @cached_property
    def wanted(self) -> Tensor:
        """`M R` (O, C, K)."""
        found: Tensor = (self.metric @ self.cross.flatten(1)).reshape(self.cross.shape)
        return found


class Scheme(Protocol):
    """How a form's factors are fitted."""

    def start(self, normal: Normal, dense: Tensor) -> Any:
        """Return factors near a dense kernel (O, C, K)."""

    def kernel(self, factors: Any) -> Tensor:
        """Return the dense kernel (O, C, K) that factors compute."""

    def sweep(self, normal: Normal, factors: Any) -> Any:
        """Return better factors after one round over all of them."""


def oas_ridge(covariance: Covariance, samples: int) -> float:
    """Return the ridge that shrinks a covariance towards its mean variance, from the data alone.

    Chen, Wiesel, Eldar & Hero 2010, "Shrinkage algorithms for MMSE covariance estimation", equation 23.
    With it on the diagonal, `S + ridge * I` has the proportions of the shrunk estimate.
    """
    size, trace, square = covariance.size()
    if trace <= 0:
        return 1.0
    spread = square - trace**2 / size
    share = ((1 - 2 / size) * square + trace**2) / ((samples + 1 - 2 / size) * spread) if spread > 0 else 1.0
    share = min(max(share, 1e-8), 0.5)
    return share / (1 - share) * trace / size


def alternate(scheme: Scheme, normal: Normal, factors: Parts, sweeps: int) -> Parts:
    """Return the factors after so many sweeps."""
    for _ in range(sweeps):
        factors = scheme.sweep(normal, factors)
    return factors


def orthonormal_windows(windows: Tensor) -> Tensor:
    """Return windows (T, channels, K) that span the same, those of every channel orthonormal."""
    basis, _ = torch.linalg.qr(windows.permute(1, 2, 0))
    ordered: Tensor = basis.permute(2, 0, 1).contiguous()
    return ordered


def row_solver(systems: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that solves each row's own system (R, T*N, T*N) for values (T, R, N)."""
    factors = cholesky(systems)

    def solve_rows(x: Tensor) -> Tensor:
        rank, rows, size = x.shape
        flat = x.transpose(0, 1).reshape(rows, -1, 1)
        return torch.cholesky_solve(flat, factors).reshape(rows, rank, size).transpose(0, 1)

    return solve_rows
