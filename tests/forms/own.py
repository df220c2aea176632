"""A form that the package does not know: a 1x1 conv to fewer channels, then the window to all outputs (Tucker-1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from convsurgeon.forms.form import Form, Stages
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.leastsquares import Normal, Parts
from convsurgeon.forms.systems import conjugate_gradients, solve


@dataclass(frozen=True)
class Reduced(Form):
    """1x1 to `rank` channels per group, then the window."""

    name: ClassVar[str] = "reduced"
    word: ClassVar[str] = "reduced"
    summed: ClassVar[bool] = False

    def full_rank(self, geometry: Geometry) -> int:
        return geometry.in_per_group

    def stages(self, geometry: Geometry) -> Stages:
        inner = self.settled_rank * geometry.groups
        window = dataclasses.replace(geometry, in_channels=inner)
        return ("reduce", geometry.pointwise(geometry.in_channels, inner, bias=False)), ("window", window)

    def factored(self, geometry: Geometry, weight: Tensor) -> list[Parts]:
        kernels = weight.detach().double().flatten(2).unflatten(0, (geometry.groups, -1))
        return [ReducedFit(self.settled_rank).split(kernel, torch.eye(kernel.shape[1]).double()) for kernel in kernels]

    def scheme(self, geometry: Geometry) -> ReducedFit:
        return ReducedFit(self.settled_rank)

    def kernels(self, geometry: Geometry, groups: Sequence[Parts]) -> list[tuple[Tensor, ...]]:
        reduce, window = (torch.cat(part) for part in zip(*groups, strict=True))
        return [(reduce[..., None, None], window.unflatten(2, geometry.kernel_size))]


@dataclass(frozen=True)
class ReducedFit:
    """Reduce (R, C), window (O, R, K)."""

    rank: int

    def split(self, dense: Tensor, root: Tensor) -> Parts:
        rows = torch.einsum("ock,cd->dok", dense, root).flatten(1)
        inputs = torch.linalg.eigh(rows @ rows.T)[1][:, -self.rank :].T
        return inputs, torch.einsum("ock,rc->ork", dense, inputs)

    def start(self, normal: Normal, dense: Tensor) -> Parts:
        reduce, _ = self.split(dense, torch.eye(dense.shape[1], dtype=dense.dtype))
        return reduce, self._window(normal, reduce)

    def kernel(self, factors: Parts) -> Tensor:
        return torch.einsum("rc,ork->ock", *factors)

    def sweep(self, normal: Normal, factors: Parts) -> Parts:
        def project(dense: Tensor) -> Tensor:
            return torch.einsum("ock,ork->rc", dense, factors[1])

        def apply(x: Tensor) -> Tensor:
            return project(normal.pulled(self.kernel((x, factors[1]))))

        reduce = conjugate_gradients(apply, project(normal.wanted), factors[0], lambda x: x, normal.steps)
        return reduce, self._window(normal, reduce)

    def _window(self, normal: Normal, reduce: Tensor) -> Tensor:
        half = torch.einsum("rc,ckdl->rkdl", reduce, normal.covariance)
        system = torch.einsum("rkdl,sd->rksl", half, reduce).flatten(2).flatten(0, 1)
        right = torch.einsum("ock,rc->rko", normal.cross, reduce).flatten(0, 1)
        return solve(system, right).T.reshape(len(normal.cross), self.rank, -1)
