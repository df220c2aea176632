r"""What a site reads, around its mean: the covariance that its fit needs, and the regression of a target on it.

The regression is drawn to the original kernel `W0` by the ridge. Where the unknowns of an output are many and the rows
fewer, it is solved in the space of the rows (see `forms.covariance`): `W0 + (Y - X W0^T)^T (X X^T + ridge I)^-1 X`.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from convsurgeon.base import processes as world
from convsurgeon.fit.samples import moments, second_moment, squares
from convsurgeon.forms.covariance import Covariance, FewRows, Whole
from convsurgeon.forms.leastsquares import DOUBLE_UNKNOWNS, oas_ridge, precision
from convsurgeon.forms.systems import cholesky


def few(rows: int, unknowns: int) -> bool:
    """Whether the rows of all processes are worth being kept as they are."""
    return unknowns > DOUBLE_UNKNOWNS and 2 * rows < unknowns


class Spread(Protocol):
    """What a site's fit needs of the patches (S, p)."""

    covariance: Covariance
    """With its ridge."""
    dtype: torch.dtype

    def regress(self, target: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """The target's products with the patches, and its regression on them, drawn to a kernel (O, p): both (O, p)."""


def spread_of(patches: Tensor, center: Tensor) -> Spread:
    """Of the patches (S, p) of all processes, around a center (p,)."""
    rows = int(world.totals(len(patches))[0])
    if few(rows, patches.shape[1]):
        return _OfFew(patches, center, rows)
    return _OfMany(patches, center, rows)


class _OfMany:
    def __init__(self, patches: Tensor, center: Tensor, rows: int) -> None:
        self._patches, self._center = patches, center.float()
        values = second_moment(patches, self._center)
        self._ridge = oas_ridge(Whole(values), rows)
        values.diagonal().add_(self._ridge)
        self.dtype = precision(len(values))
        self.covariance: Covariance = Whole(values.to(self.dtype))
        self._factor = cholesky(self.covariance.values)

    def regress(self, target: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        drawn = (moments(target, self._patches, self._center) + self._ridge * kernel).to(self.dtype)
        return drawn, torch.cholesky_solve(drawn.T, self._factor).T


class _OfFew:
    def __init__(self, patches: Tensor, center: Tensor, rows: int) -> None:
        self._root = math.sqrt(max(1, rows))
        scaled = FewRows(world.gathered((patches - center.float()) / self._root))
        self._rows = scaled.with_ridge(oas_ridge(scaled, rows))
        self.dtype = scaled.rows.dtype
        self.covariance: Covariance = self._rows

    def regress(self, target: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        dense = kernel.to(self.dtype)
        errors = world.gathered(target) / self._root - self._rows.rows @ dense.T
        found = dense + self._rows.regress(errors)
        return self._rows.times(found), found


class Gathering:
    """The second moment of patches that come bit by bit, for each group of a conv."""

    def __init__(self, groups: int, unknowns: int) -> None:
        self.rows = 0
        self._groups, self._unknowns = groups, unknowns
        self._kept: list[Tensor] = []
        self._totals: list[Tensor] = []

    def add(self, patches: Tensor) -> None:
        """Some more (S, groups, p)."""
        self.rows += len(patches)
        self._kept.append(patches)
        if not few(self.rows, self._unknowns):
            self._multiply_out()

    def covariances(self, like: Tensor) -> tuple[list[Covariance], int]:
        """Of the patches of all processes, and how many those are; on the device of a tensor where there are none."""
        rows = int(world.totals(self.rows)[0])
        if few(rows, self._unknowns):
            kept = torch.cat([like.new_zeros(0, self._groups, self._unknowns, dtype=torch.float32), *self._kept])
            every = world.gathered(kept) / math.sqrt(max(1, rows))
            return [FewRows(group) for group in every.unbind(1)], rows
        self._multiply_out()
        totals = world.added(*(self._totals or self._nothing(like)))
        return [Whole(total.div_(max(1, rows))) for total in totals], rows

    def _multiply_out(self) -> None:
        for patches in self._kept:
            self._totals = self._totals or self._nothing(patches)
            for group, total in enumerate(self._totals):
                squares(patches[:, group], onto=total)
        self._kept = []

    def _nothing(self, like: Tensor) -> list[Tensor]:
        size = self._unknowns
        return list(like.new_zeros(self._groups, size, size, dtype=precision(size)))
