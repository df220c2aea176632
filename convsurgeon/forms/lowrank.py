r"""Low rank: a 1x1 conv as two, with a few channels between them, for networks whose work is in their 1x1 convs.

`W = expand @ reduce` with `expand` (O, R) and `reduce` (R, C); exact at R = min(C, O). The conv's stride and padding
sit on the first, which has no bias. With groups everything holds group by group, the rank too.

In the fit the optimum has a closed form, the regression of reduced rank (Izenman 1975): with `W` the free regression,
`S` the covariance of the inputs and `M` the metric of the outputs, the leading eigenvectors `U` of
`M^1/2 W S W^T M^1/2` give `expand = M^-1/2 U` and `reduce = U^T M^1/2 W`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from convsurgeon.forms import svd
from convsurgeon.forms.branched import Stages
from convsurgeon.forms.factorised import Factorised
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.leastsquares import Normal, Parts
from convsurgeon.forms.systems import eigen, roots


@dataclass(frozen=True)
class LowRank(Factorised):
    """Two 1x1 convs in the place of one, with `rank` channels per group between them."""

    name: ClassVar[str] = "low_rank"
    word: ClassVar[str] = "lowrank"
    width_steps: ClassVar[tuple[int, int]] = (16, 8)

    @property
    def branches(self) -> int:
        """One."""
        return 1

    def check(self, geometry: Geometry) -> str | None:
        """Why a conv of this geometry cannot take the form, or None."""
        if len(geometry.kernel_size) != 2 or geometry.transposed:
            return "only Conv2d is rewritten"
        if geometry.taps > 1:
            return f"{geometry.kernel} kernel: only a 1x1 conv is cut into two"
        return "already depthwise" if geometry.depthwise else None

    def full_rank(self, geometry: Geometry) -> int:
        """min(C, O) of a group."""
        return min(geometry.in_per_group, geometry.out_per_group)

    def stages(self, geometry: Geometry) -> Stages:
        """Reduce, with the stride; expand."""
        inner = self._rank * geometry.groups
        reduce = dataclasses.replace(geometry, out_channels=inner, bias=False)
        return ("reduce", reduce), ("expand", geometry.pointwise(inner, geometry.out_channels, bias=geometry.bias))

    def matrices(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """One (O, C) matrix per group."""
        grouped: Tensor = weight.flatten(1).unflatten(0, (geometry.groups, -1))
        return grouped

    def parts(self, geometry: Geometry, factors: svd.Factors) -> list[Parts]:
        """Reduce (R, C) and expand (O, R) of every group."""
        return list(zip(factors.right, factors.left, strict=True))

    def scheme(self, geometry: Geometry) -> LowRankFit:
        """Regression of reduced rank."""
        return LowRankFit(self._rank)

    def kernels(self, geometry: Geometry, groups: Sequence[Parts]) -> list[tuple[Tensor, ...]]:
        """Reduce (R*groups, C/groups, 1, 1) and expand (O, R, 1, 1)."""
        reduce, expand = (torch.cat(part) for part in zip(*groups, strict=True))
        return [(reduce[..., None, None], expand[..., None, None])]


@dataclass(frozen=True)
class LowRankFit:
    """Reduce (R, C), expand (O, R)."""

    rank: int

    def start(self, normal: Normal, dense: Tensor) -> Parts:
        """The optimum near a dense kernel (O, C, 1)."""
        matrix = dense.flatten(1)
        root, inverse = roots(normal.metric)
        weighed = root @ matrix
        leading = eigen(weighed @ normal.square @ weighed.T)[1][:, -self.rank :]
        return leading.T @ weighed, inverse @ leading

    def kernel(self, factors: Parts) -> Tensor:
        """(O, C, 1)."""
        reduce, expand = factors
        return (expand @ reduce)[..., None]

    def sweep(self, normal: Normal, factors: Parts) -> Parts:
        """The optimum, if rounding has not made it worse than what is there."""
        found = self.start(normal, normal.regress())
        return found if normal.cost(self.kernel(found)) < normal.cost(self.kernel(factors)) else factors
