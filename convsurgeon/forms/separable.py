"""Depthwise separable: a kernel's window first, then the mixing of channels; rank T means T of them, summed.

For each input channel c, `W[:, c, :]` (O x K) becomes T depthwise filters and T pointwise columns, so

    W[o, c, k] = sum_t mixing[t, o, c] * window[t, c, k]        y = sum_t pointwise_t(depthwise_t(x))

and the conv's stride, padding and dilation sit on the depthwise conv. Exact at T = min(K, O). Guo et al., Network
Decoupling, BMVC 2018. With groups all of this holds group by group, and the pointwise conv carries the groups.
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
from convsurgeon.forms.leastsquares import Normal, Parts, orthonormal_windows, row_solver
from convsurgeon.forms.systems import conjugate_gradients, roots, solve


@dataclass(frozen=True)
class DepthwiseSeparable(Factorised):
    """Depthwise, then pointwise; `rank` of them summed. Guo et al., BMVC 2018; exact at rank min(kh*kw, O/groups)."""

    name: ClassVar[str] = "depthwise_separable"
    word: ClassVar[str] = "separable"

    def full_rank(self, geometry: Geometry) -> int:
        """Return min(kh*kw, output channels per group)."""
        return min(geometry.taps, geometry.out_per_group)

    def stages(self, geometry: Geometry) -> Stages:
        """Return depthwise with the window, pointwise with the channels."""
        pointwise = geometry.pointwise(geometry.in_channels, geometry.out_channels, bias=geometry.bias)
        return ("depthwise", geometry.over(geometry.in_channels, bias=False)), ("pointwise", pointwise)

    def matrices(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """Return one (O/groups, kh*kw) matrix per input channel."""
        grouped: Tensor = weight.flatten(2).unflatten(0, (geometry.groups, -1))
        return grouped.transpose(1, 2).flatten(0, 1)

    def parts(self, geometry: Geometry, factors: svd.Factors) -> list[Parts]:
        """Return mixings (T, O, C) and windows (T, C, K) of every group."""
        lefts, rights = (side.unflatten(0, (geometry.groups, -1)) for side in factors)
        return [(left.permute(2, 1, 0), right.transpose(0, 1)) for left, right in zip(lefts, rights, strict=True)]

    def scheme(self, geometry: Geometry) -> SeparableFit:
        """Return alternating least squares."""
        return SeparableFit(self.settled_rank)

    def kernels(self, geometry: Geometry, groups: Sequence[Parts]) -> list[tuple[Tensor, ...]]:
        """Return for each branch depthwise (C, 1, kh, kw) and pointwise (O, C/groups, 1, 1)."""
        mixings, windows = balance_norms(*(torch.cat(part, 1) for part in zip(*groups, strict=True)))
        depthwise = windows.unflatten(2, (1, *geometry.kernel_size))
        return list(zip(depthwise, mixings[..., None, None], strict=True))


@dataclass(frozen=True)
class SeparableFit:
    """Mixings (T, O, C), windows (T, C, K): depthwise, then pointwise."""

    rank: int

    def start(self, normal: Normal, dense: Tensor) -> Parts:
        """Start with windows from the SVD of `M^1/2 W[:, c] S_cc^1/2` for every channel and the best mixings."""
        root, inverse = roots(normal.covariance.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
        weighed = roots(normal.metric)[0] @ dense.transpose(0, 1) @ root
        windows = orthonormal_windows((leading(weighed, self.rank) @ inverse).transpose(0, 1))
        return self._mixings(normal, windows), windows

    def kernel(self, factors: Parts) -> Tensor:
        """Return the dense kernel (O, C, K)."""
        return torch.einsum("toc,tck->ock", *factors)

    def sweep(self, normal: Normal, factors: Parts) -> Parts:
        """Improve windows, then mixings."""
        windows = orthonormal_windows(self._windows(normal, factors))
        return self._mixings(normal, windows), windows

    def _mixings(self, normal: Normal, windows: Tensor) -> Tensor:
        """Solve one (T*C)^2 system for all outputs."""
        rank, channels, _ = windows.shape
        half = torch.stack([(normal.covariance * window).sum(-1) for window in windows])  # (U, C, K, D)
        system = torch.einsum("tck,uckd->tcud", windows, half).reshape(rank * channels, -1)
        right = torch.einsum("ock,tck->tco", normal.cross, windows).flatten(0, 1)
        return solve(system, right).reshape(rank, channels, -1).transpose(1, 2).contiguous()

    def _windows(self, normal: Normal, factors: Parts) -> Tensor:
        """Solve one (T*C*K)^2 system, directly or by conjugate gradients."""
        mixings, windows = factors
        right = torch.einsum("toc,ock->tck", mixings, normal.wanted)
        weighed = normal.metric @ mixings
        if windows.numel() <= leastsquares.DIRECT_UNKNOWNS:
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

        return conjugate_gradients(apply, right, windows, row_solver(systems))
