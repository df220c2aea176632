r"""Low rank: a 1x1 conv as two, with a few channels between them, for networks whose work is in their 1x1 convs.

`W = expand @ reduce` with `expand` (O, R) and `reduce` (R, C); exact at R = min(C, O). The conv's stride and padding
sit on the first, which has no bias. With groups everything holds group by group, the rank too.

In the fit the optimum has a closed form, the regression of reduced rank (Izenman 1975): with `W` the free regression,
`S` the covariance of the inputs and `M = L L^T` the metric of the outputs, the leading eigenvectors `U` of
`L^T W S W^T L` give `expand = L^-T U` and `reduce = U^T L^T W`. They are the same for all ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from convsurgeon.forms import svd
from convsurgeon.forms.factorised import Factorised
from convsurgeon.forms.form import Stages
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.leastsquares import Normal, Parts
from convsurgeon.forms.systems import cholesky, eigen


@dataclass(frozen=True)
class LowRank(Factorised):
    """Two 1x1 convs in the place of one, with `rank` channels per group between them."""

    name: ClassVar[str] = "low_rank"
    word: ClassVar[str] = "lowrank"
    width_steps: ClassVar[tuple[int, int]] = (16, 8)
    summed: ClassVar[bool] = False

    def check(self, geometry: Geometry) -> str | None:
        """Return why a conv of this geometry cannot take the form, or None."""
        if len(geometry.kernel_size) != 2 or geometry.transposed:
            return "only Conv2d is rewritten"
        if geometry.taps > 1:
            return f"{geometry.kernel} kernel: only a 1x1 conv is cut into two"
        return "already depthwise" if geometry.depthwise else None

    def full_rank(self, geometry: Geometry) -> int:
        """Return min(C, O) of a group."""
        return min(geometry.in_per_group, geometry.out_per_group)

    def stages(self, geometry: Geometry) -> Stages:
        """Return reduce, with the stride, and expand."""
        inner = self.settled_rank * geometry.groups
        reduce = dataclasses.replace(geometry, out_channels=inner, bias=False)
        return ("reduce", reduce), ("expand", geometry.pointwise(inner, geometry.out_channels, bias=geometry.bias))

    def matrices(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """Return one (O, C) matrix per group."""
        grouped: Tensor = weight.flatten(1).unflatten(0, (geometry.groups, -1))
        return grouped

    def parts(self, geometry: Geometry, factors: svd.Factors) -> list[Parts]:
        """Return reduce (R, C) and expand (O, R) of every group."""
        left, right = factors
        return list(zip(right, left, strict=True))

    def scheme(self, geometry: Geometry) -> LowRankFit:
        """Return the regression of reduced rank."""
        return LowRankFit(self.settled_rank)

    def kernels(self, geometry: Geometry, groups: Sequence[Parts]) -> list[tuple[Tensor, ...]]:
        """Return reduce (R*groups, C/groups, 1, 1) and expand (O, R, 1, 1)."""
        reduce, expand = (torch.cat(part) for part in zip(*groups, strict=True))
        return [(reduce[..., None, None], expand[..., None, None])]


@dataclass(frozen=True)
class LowRankFit:
    """Reduce (R, C), expand (O, R)."""

    rank: int

    def start(self, normal: Normal, dense: Tensor) -> Parts:
        """Return the optimum near a dense kernel (O, C, 1)."""
        lower, weighed, directions = _directions(normal, dense)
        leading = directions[:, -self.rank :]
        return leading.T @ weighed, torch.linalg.solve_triangular(lower.T, leading, upper=True)

    def kernel(self, factors: Parts) -> Tensor:
        """Return the dense kernel (O, C, 1)."""
        reduce, expand = factors
        return (expand @ reduce)[..., None]

    def sweep(self, normal: Normal, factors: Parts) -> Parts:
        """Return the optimum, if rounding has not made it worse than what is there."""
        found = self.start(normal, normal.regress())
        if all(map(torch.equal, found, factors)):
            return factors
        return found if _cost(normal, found) < _cost(normal, factors) else factors


def _cost(normal: Normal, factors: Parts) -> float:
    """Return `normal.cost` of their product, which is not multiplied out."""
    reduce, expand = factors
    weighed = expand.T @ normal.metric
    quadratic = (weighed @ expand) * (normal.spread.times(reduce) @ reduce.T)
    return float(quadratic.sum() - 2 * ((weighed @ normal.cross.flatten(1)) * reduce).sum())


def _directions(normal: Normal, dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `L` (O, O), `L^T W` (O, C) and all eigenvectors (O, O), the most important one last.

    Those of the regression are kept for other ranks of the problem.
    """
    free = dense is normal.regression
    if free and "directions" in normal.shared:
        found: tuple[Tensor, Tensor, Tensor] = normal.shared["directions"]
        return found
    lower = cholesky(normal.metric)
    weighed = lower.T @ dense.flatten(1)
    found = lower, weighed, eigen(normal.spread.times(weighed) @ weighed.T)[1]
    if free:
        normal.shared["directions"] = found
    return found
