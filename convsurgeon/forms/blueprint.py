"""Blueprint (BSConv-U): the mixing of channels first, then a window on every output; rank T means T of them, summed.

For each output channel o, `W[o, :, :]` (C x K) is factored,

    W[o, c, k] = sum_t mixing[t, o, c] * window[t, o, k]        y = sum_t depthwise_t(pointwise_t(x))

Exact at T = min(K, C). The pointwise conv has no bias, or zero padding would see it. Haase & Amthor, CVPR 2020. With
groups all of this holds group by group, and the pointwise conv carries the groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from convsurgeon.forms import leastsquares, svd
from convsurgeon.forms.factorised import Factorised, balance_norms, leading
from convsurgeon.forms.form import Stages
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.leastsquares import Normal, Parts, Scheme, orthonormal_windows, row_solver
from convsurgeon.forms.systems import cholesky, conjugate_gradients, roots, solve

DIRECT_MIXINGS = 256
"""Largest system per output channel of the mixings that is factored: there are O of them."""


@dataclass(frozen=True)
class Blueprint(Factorised):
    """Pointwise, then depthwise (BSConv-U); `rank` of them summed. Exact at rank min(kh*kw, C/groups).

    Haase & Amthor, CVPR 2020. The pointwise conv runs before the stride, so at stride 2 it costs four times what the
    separable form does.
    """

    name: ClassVar[str] = "blueprint"
    word: ClassVar[str] = "blueprint"

    def full_rank(self, geometry: Geometry) -> int:
        """Return min(kh*kw, input channels per group)."""
        return min(geometry.taps, geometry.in_per_group)

    def stages(self, geometry: Geometry) -> Stages:
        """Return pointwise with the channels, depthwise with the window."""
        pointwise = geometry.pointwise(geometry.in_channels, geometry.out_channels, bias=False)
        return ("pointwise", pointwise), ("depthwise", geometry.over(geometry.out_channels, bias=geometry.bias))

    def matrices(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """Return one (C/groups, kh*kw) matrix per output channel."""
        return weight.flatten(2)

    def parts(self, geometry: Geometry, factors: svd.Factors) -> list[Parts]:
        """Return mixings (T, O, C) and windows (T, O, K) of every group."""
        lefts, rights = (side.unflatten(0, (geometry.groups, -1)) for side in factors)
        return [(left.permute(2, 0, 1), right.transpose(0, 1)) for left, right in zip(lefts, rights, strict=True)]

    def scheme(self, geometry: Geometry) -> Scheme:
        """Return alternating least squares."""
        return BlueprintFit(self.settled_rank)

    def kernels(self, geometry: Geometry, groups: Sequence[Parts]) -> list[tuple[Tensor, ...]]:
        """Return for each branch pointwise (O, C/groups, 1, 1) and depthwise (O, 1, kh, kw)."""
        mixings, windows = balance_norms(*(torch.cat(part, 1) for part in zip(*groups, strict=True)))
        depthwise = windows.unflatten(2, (1, *geometry.kernel_size))
        return list(zip(mixings[..., None, None], depthwise, strict=True))


@dataclass(frozen=True)
class BlueprintFit:
    """Mixings (T, O, C), windows (T, O, K): pointwise, then depthwise."""

    rank: int

    def start(self, normal: Normal, dense: Tensor) -> Parts:
        """Start with windows from the SVD of `W[o]` between roots of the covariance's marginals, then mixings."""
        across = normal.channels
        root, inverse = roots(normal.taps)
        windows = orthonormal_windows((leading(roots(across)[0] @ dense @ root, self.rank) @ inverse).transpose(0, 1))
        return self._mixings(normal, (torch.einsum("ock,tok->toc", dense, windows), windows)), windows

    def kernel(self, factors: Parts) -> Tensor:
        """(O, C, K)."""
        return torch.einsum("toc,tok->ock", *factors)

    def sweep(self, normal: Normal, factors: Parts) -> Parts:
        """Windows, then mixings, which first follow the windows' change of basis."""
        moved = self._windows(normal, factors)
        windows = orthonormal_windows(moved)
        mixings = torch.einsum("uoc,uok,tok->toc", factors[0], moved, windows)
        return self._mixings(normal, (mixings, windows)), windows

    def _mixings(self, normal: Normal, factors: Parts) -> Tensor:
        """Solve for all outputs by conjugate gradients; the preconditioner solves each output's own system."""
        mixings, windows = factors
        channels = mixings.shape[2]

        def apply(x: Tensor) -> Tensor:
            return torch.einsum("ock,tok->toc", normal.pulled(self.kernel((x, windows))), windows)

        right = torch.einsum("ock,tok->toc", normal.wanted, windows)
        weight = normal.metric.diagonal()
        if self.rank * channels <= DIRECT_MIXINGS:
            precondition = row_solver(self._own_mixings(normal, windows) * weight[:, None, None])
            return conjugate_gradients(apply, right, mixings, precondition, normal.steps)
        across = cholesky(normal.channels)  # the windows are orthonormal

        def shared(x: Tensor) -> Tensor:
            rows = (x / weight[:, None]).flatten(0, 1)
            return torch.cholesky_solve(rows.T, across).T.reshape(x.shape)

        return conjugate_gradients(apply, right, mixings, shared, normal.steps)

    def _own_mixings(self, normal: Normal, windows: Tensor) -> Tensor:
        """Return the systems (O, T*C, T*C) of single outputs."""
        rank, outputs, taps = windows.shape
        channels = len(normal.covariance)
        pairs = torch.einsum("tok,uol->otukl", windows, windows).reshape(-1, taps * taps)
        by_taps = normal.covariance.permute(1, 3, 0, 2).reshape(taps * taps, -1)
        systems = (pairs @ by_taps).reshape(outputs, rank, rank, channels, channels).transpose(2, 3)
        return systems.reshape(outputs, rank * channels, -1)

    def _windows(self, normal: Normal, factors: Parts) -> Tensor:
        """Solve one (T*O*K)^2 system, directly or by conjugate gradients, with each output's own system first."""
        mixings, windows = factors
        rank, outputs, taps = windows.shape
        channels = mixings.shape[2]
        right = torch.einsum("toc,ock->tok", mixings, normal.wanted)
        flat = mixings.flatten(0, 1)
        mixed = (flat @ normal.covariance.reshape(channels, -1)).reshape(rank, outputs, taps, channels, taps)
        if windows.numel() <= leastsquares.DIRECT_UNKNOWNS:
            system = (mixed.transpose(3, 4).reshape(-1, channels) @ flat.T).unflatten(0, (rank, outputs, taps, taps))
            system = system.unflatten(-1, (rank, outputs)).permute(0, 1, 2, 4, 5, 3)
            system = system * normal.metric[None, :, None, None, :, None]
            return solve(system.reshape(windows.numel(), -1), right.reshape(-1, 1)).reshape(windows.shape)
        own = torch.einsum("tokcl,uoc->otkul", mixed, mixings).reshape(outputs, rank * taps, -1)

        def apply(x: Tensor) -> Tensor:
            return torch.einsum("toc,ock->tok", mixings, normal.pulled(self.kernel((mixings, x))))

        precondition = row_solver(own * normal.metric.diagonal()[:, None, None])
        return conjugate_gradients(apply, right, windows, precondition, normal.steps)
