r"""The covariance of what a conv reads, multiplied out or as the rows that make it. Tensors only.

A linear layer of 25,088 inputs has a covariance of 2.5 GB that a few hundred images give. With rows `X` (S x p) fewer
than unknowns, `X^T X + ridge I` is never written out: products cost `S` for each unknown in place of `p`, and

    E^T X (X^T X + ridge I)^-1 = E^T (X X^T + ridge I)^-1 X

solves for a target in the space of the rows with a system of S x S.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from convsurgeon.forms.systems import cholesky


@dataclass(frozen=True)
class Whole:
    """The matrix itself (p, p)."""

    values: Tensor

    def times(self, matrix: Tensor) -> Tensor:
        """Return `matrix @ S` for a matrix (O, p)."""
        return matrix @ self.values

    def marginals(self, taps: int) -> tuple[Tensor, Tensor]:
        """Return the covariance of channels (C, C), averaged over taps, and of taps (K, K), averaged over channels."""
        parts = self.values.unflatten(1, (-1, taps)).unflatten(0, (-1, taps))
        return parts.diagonal(dim1=1, dim2=3).mean(-1), parts.diagonal(dim1=0, dim2=2).mean(-1)

    def with_ridge(self, ridge: float) -> Whole:
        """Return a copy with the ridge on its diagonal, `S + ridge I`."""
        values = self.values.clone()
        values.diagonal().add_(ridge)
        return Whole(values)

    def size(self) -> tuple[int, float, float]:
        """Return width, trace and squared norm."""
        return len(self.values), float(self.values.trace()), float(self.values.norm()) ** 2


@dataclass(frozen=True)
class FewRows:
    """`rows^T rows + ridge I` of rows (S, p), fewer than they are wide and each divided by the root of their number."""

    rows: Tensor
    ridge: float = 0.0

    @cached_property
    def values(self) -> Tensor:
        """Multiplied out (p, p), for the forms that need every element."""
        return Whole(self.rows.T @ self.rows).with_ridge(self.ridge).values

    def times(self, matrix: Tensor) -> Tensor:
        """Return `matrix @ S`, through the rows."""
        return torch.add((matrix @ self.rows.T) @ self.rows, matrix, alpha=self.ridge)

    def marginals(self, taps: int) -> tuple[Tensor, Tensor]:
        """Return the same as of a whole covariance, which is not multiplied out."""
        parts = self.rows.unflatten(1, (-1, taps))
        by_channel, by_tap = parts.transpose(1, 2).flatten(0, 1), parts.flatten(0, 1)
        channels, windows = by_channel.T @ by_channel / taps, by_tap.T @ by_tap / parts.shape[1]
        return Whole(channels).with_ridge(self.ridge).values, Whole(windows).with_ridge(self.ridge).values

    def with_ridge(self, ridge: float) -> FewRows:
        """Return the same rows, and their products where they are known, with more ridge."""
        made = FewRows(self.rows, self.ridge + ridge)
        vars(made).update({name: value for name, value in vars(self).items() if name == "products"})
        return made

    def size(self) -> tuple[int, float, float]:
        """Return width, trace and squared norm, from the rows' products, whose spectrum is the same."""
        width, products = self.rows.shape[1], self.products
        trace, square = float(products.trace()), float(products.norm()) ** 2
        return width, trace + width * self.ridge, square + self.ridge * (2 * trace + width * self.ridge)

    @cached_property
    def products(self) -> Tensor:
        """`rows rows^T` (S, S) in float64."""
        exact = self.rows.double()
        return exact @ exact.T

    @cached_property
    def factor(self) -> Tensor:
        """The Cholesky factor of `rows rows^T + ridge I`."""
        return cholesky(Whole(self.products).with_ridge(self.ridge).values)

    def regress(self, errors: Tensor) -> Tensor:
        """Return `errors^T rows S^-1` (O, p), which takes errors (S, O) of the rows away as far as the ridge allows."""
        weights: Tensor = torch.cholesky_solve(errors.double(), self.factor)
        return weights.T.to(self.rows) @ self.rows


Covariance = Whole | FewRows
"""A positive semi-definite matrix (p, p), however it is held."""
