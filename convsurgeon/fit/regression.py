r"""Statistics of what a conv reads, around its mean: the covariance, and the regression of a target on it.

The regression is drawn to the original kernel `W0` by the ridge. Where the unknowns of an output are many and the rows
fewer, it is solved in the space of the rows (see `forms.covariance`): `W0 + (Y - X W0^T)^T (X X^T + ridge I)^-1 X`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convsurgeon.fit.samples import cross_moment, squares
from convsurgeon.forms.covariance import Covariance, FewRows, Whole
from convsurgeon.forms.leastsquares import DOUBLE_UNKNOWNS, oas_ridge, precision
from convsurgeon.forms.systems import cholesky


def few(rows: int, unknowns: int) -> bool:
    """Return whether rows are so few that they are kept and not multiplied out."""
    return unknowns > DOUBLE_UNKNOWNS and 2 * rows < unknowns


class Regression:
    """The covariance of patches with its ridge, and the regression of targets on them.

    Args:
        patches: (S, p).
        center: (p,), subtracted from every patch.
    """

    def __init__(self, patches: Tensor, center: Tensor) -> None:
        rows, unknowns = patches.shape
        self._patches, self._center, self._root = patches, center.float(), math.sqrt(max(1, rows))
        self.dtype = precision(unknowns)
        self.covariance: Whole | FewRows
        if few(rows, unknowns):
            scaled = FewRows((patches - self._center) / self._root)
            self.covariance = scaled.with_ridge(oas_ridge(scaled, rows))
            return
        values = squares(patches, self._center).div_(max(1, rows))
        self._ridge = oas_ridge(Whole(values), rows)
        values.diagonal().add_(self._ridge)
        self.covariance = Whole(values.to(self.dtype))
        self._factor = cholesky(self.covariance.values)

    def regress(self, target: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """Return a target's products with the patches, and its regression drawn to a kernel (O, p): both (O, p)."""
        if isinstance(self.covariance, FewRows):
            dense = kernel.to(self.dtype)
            errors = target / self._root - self.covariance.rows @ dense.T
            found = dense + self.covariance.regress(errors)
            return self.covariance.times(found), found
        drawn = (cross_moment(target, self._patches, self._center) + self._ridge * kernel).to(self.dtype)
        return drawn, torch.cholesky_solve(drawn.T, self._factor).T


class MomentSum:
    """The second moment of patches that come batch by batch, for each group of a conv."""

    def __init__(self, groups: int, unknowns: int) -> None:
        self.rows = 0
        self._groups, self._unknowns = groups, unknowns
        self._kept: list[Tensor] = []
        self._totals: list[Tensor] = []

    def add(self, patches: Tensor) -> None:
        """Add patches (S, groups, p)."""
        self.rows += len(patches)
        self._kept.append(patches)
        if not few(self.rows, self._unknowns):
            self._multiply_out()

    def covariances(self, like: Tensor) -> tuple[list[Covariance], int]:
        """Return the second moment of every group, and the number of rows; where no rows came, on `like`'s device."""
        if not self.rows:
            size = self._unknowns
            return [Whole(zero) for zero in like.new_zeros(self._groups, size, size, dtype=precision(size))], 0
        if few(self.rows, self._unknowns):
            every = torch.cat(self._kept) / math.sqrt(self.rows)
            return [FewRows(group) for group in every.unbind(1)], self.rows
        self._multiply_out()
        return [Whole(total / self.rows) for total in self._totals], self.rows

    def _multiply_out(self) -> None:
        size = self._unknowns
        for patches in self._kept:
            self._totals = self._totals or list(patches.new_zeros(self._groups, size, size, dtype=precision(size)))
            for group, total in enumerate(self._totals):
                squares(patches[:, group], onto=total)
        self._kept = []
