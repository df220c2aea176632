"""Forms that are a low-rank factorisation of one way to pile a kernel into matrices: the SVD says all about them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from convsurgeon.forms import svd
from convsurgeon.forms.form import Form
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.leastsquares import Parts
from convsurgeon.forms.systems import eigen


@dataclass(frozen=True)
class Factorised(Form):
    """A form whose factors are truncated singular vectors, so that one spectrum tells what any rank loses."""

    @abstractmethod
    def matrices(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """Return the kernel piled up for factoring, (B, M, N)."""

    @abstractmethod
    def parts(self, geometry: Geometry, factors: svd.Factors) -> list[Parts]:
        """Return the factors of every group, from those of the matrices."""

    def factored(self, geometry: Geometry, weight: Tensor) -> list[Parts]:
        """Return the truncated SVD (Eckart & Young 1936)."""
        return self.parts(geometry, svd.truncate(self.matrices(geometry, weight), self.settled_rank))

    def energies(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """Return the energy in each singular direction, largest first, summed over the layer: (full rank,) float64."""
        return svd.spectrum(self.matrices(geometry, weight))


def balance_norms(mixings: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mixings and windows (T, ...) of the same product, those of every branch with equal norms."""
    share = (mixings.flatten(1).norm(dim=1) / windows.flatten(1).norm(dim=1).clamp(min=1e-30)).sqrt()
    share = torch.where(share > 0, share, 1.0)[:, None, None]
    return mixings / share, windows * share


def leading(matrices: Tensor, rank: int) -> Tensor:
    """Return the leading right singular vectors (B, T, N) of (B, M, N), through their N x N Gram matrices."""
    _, vectors = eigen(matrices.mT @ matrices)
    found: Tensor = vectors[..., -rank:].mT.flip(-2)
    return found
