"""Forms that are a low-rank factorisation of one way to pile a kernel into matrices: the SVD says all about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convsurgeon.forms import svd
from convsurgeon.forms.branched import Branched, Known
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.leastsquares import Parts
from convsurgeon.forms.ranks import Energy
from convsurgeon.forms.systems import eigen


@dataclass(frozen=True)
class Factorised(Branched):
    """A form whose factors are truncated singular vectors, so that one spectrum tells what any rank loses."""

    def matrices(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """The kernel piled up for factoring, (B, M, N)."""
        raise NotImplementedError

    def parts(self, geometry: Geometry, factors: svd.Factors) -> list[Parts]:
        """The factors of every group, from those of the matrices."""
        raise NotImplementedError

    def factored(self, geometry: Geometry, weight: Tensor, known: Known | None = None) -> list[Parts]:
        """The truncated SVD (Eckart & Young 1936)."""
        return self.parts(geometry, svd.truncate(self.matrices(geometry, weight), self._rank))

    def spectrum(self, geometry: Geometry, weight: Tensor, known: Known | None = None) -> Tensor:
        """Energy in each singular direction, largest first, summed over the layer: (full rank,) float64.

        Args:
            geometry: of the conv.
            weight: its kernel (O, C/groups, kh, kw).
            known: what is known of this very kernel; what is missing is added.
        """
        return self._recalled(geometry, weight, known)

    def energies(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """What is to be known of a kernel to tell what any rank loses: its spectrum."""
        return svd.spectrum(self.matrices(geometry, weight))

    def lost(self, geometry: Geometry, weight: Tensor, known: Known | None = None) -> float | None:
        """Share of the kernel's energy dropped; None for `init="random"` and on the meta device."""
        if self.init == "random" or weight.is_meta:
            return None
        return svd.lost(self.spectrum(geometry, weight, known), self._rank)

    def _keeping(self, rule: Energy, geometry: Geometry, weight: Tensor, known: Known | None) -> int:
        rank, full = rule.rank(self.spectrum(geometry, weight, known)), self.full_rank(geometry)
        return next((width for width in range(rank, full) if self.even_width(width) == width), full)

    def _recalled(self, geometry: Geometry, weight: Tensor, known: Known | None) -> Tensor:
        """`energies`, computed once for all forms of a kind."""
        known = {} if known is None else known
        if type(self) not in known:
            known[type(self)] = self.energies(geometry, weight)
        energies: Tensor = known[type(self)]
        return energies


def balanced(mixings: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Mixings and windows (T, ...) of the same product, those of every branch with equal norms."""
    share = (mixings.flatten(1).norm(dim=1) / windows.flatten(1).norm(dim=1).clamp(min=1e-30)).sqrt()
    share = torch.where(share > 0, share, 1.0)[:, None, None]
    return mixings / share, windows * share


def leading(matrices: Tensor, rank: int) -> Tensor:
    """(B, T, N): leading right singular vectors of (B, M, N), through their N x N Gram matrices."""
    _, vectors = eigen(matrices.mT @ matrices)
    found: Tensor = vectors[..., -rank:].mT.flip(-2)
    return found
