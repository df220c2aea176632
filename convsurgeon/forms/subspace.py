"""Blueprint through a subspace (BSConv-S): a blueprint whose pointwise matrix is itself cut to a narrower inner width.

Haase & Amthor, CVPR 2020, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import FormError
from convsurgeon.forms import svd
from convsurgeon.forms.blueprint import Blueprint, BlueprintFit
from convsurgeon.forms.form import Known, Stages
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.leastsquares import Normal, Parts, Scheme
from convsurgeon.forms.systems import roots


@dataclass(frozen=True)
class BlueprintSubspace(Blueprint):
    """A blueprint whose pointwise conv passes through a narrower space (BSConv-S).

    Haase & Amthor, CVPR 2020, section 3.2.

    Args:
        width: share of the input channels kept inside, 0 < width <= 1; rounded up to a multiple of 4 per group, because
            other channel counts leave onnxruntime's fast layout. Exact at full rank and width 1.
    """

    name: ClassVar[str] = "blueprint_subspace"
    word: ClassVar[str] = "subspace"

    width: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.width <= 1:
            raise FormError(f"BlueprintSubspace: width must lie in (0, 1], got {self.width}")

    @property
    def label(self) -> str:
        """Name and parameters: `subspace rank 1 width 0.25`."""
        return f"{super().label} width {self.width:g}"

    def inner(self, geometry: Geometry) -> int:
        """Return the inner channels per group."""
        wanted = 4 * math.ceil(self.width * geometry.in_per_group / 4)
        return min(wanted, geometry.in_per_group, geometry.out_per_group)

    def stages(self, geometry: Geometry) -> Stages:
        """Return two pointwise convs with the inner width between them, then depthwise."""
        inner = self.inner(geometry) * geometry.groups
        narrow = geometry.pointwise(geometry.in_channels, inner, bias=False)
        wide = geometry.pointwise(inner, geometry.out_channels, bias=False)
        depthwise = geometry.over(geometry.out_channels, bias=geometry.bias)
        return ("subspace", narrow), ("pointwise", wide), ("depthwise", depthwise)

    def scheme(self, geometry: Geometry) -> Scheme:
        """Return alternating least squares, every mixing cut to the inner width."""
        return SubspaceFit(self.settled_rank, self.inner(geometry))

    def lost(self, geometry: Geometry, weight: Tensor, known: Known | None = None) -> float | None:
        """Return the share of the kernel's energy dropped by the rank and by the width together."""
        if self.init == "random" or weight.is_meta:
            return None
        energies = self.spectrum(geometry, weight, known)
        assert energies is not None
        total = float(energies.sum())
        mixings = self._mixings(geometry, self.factored(geometry, weight))[0].flatten(0, 1)
        narrowed = float(svd.spectrum(mixings)[self.inner(geometry) :].sum())
        return svd.lost(energies, self.settled_rank) + (max(0.0, narrowed) / total if total > 0 else 0.0)

    def kernels(self, geometry: Geometry, groups: Sequence[Parts]) -> list[tuple[Tensor, ...]]:
        """Return subspace (inner, C/groups, 1, 1), pointwise (O, inner/groups, 1, 1), depthwise (O, 1, kh, kw)."""
        mixings, windows = self._mixings(geometry, groups)
        branches: list[tuple[Tensor, ...]] = []
        for mixing, window in zip(mixings, windows.unflatten(2, (1, *geometry.kernel_size)), strict=True):
            pointwise, subspace = (side.flatten(0, 1) for side in svd.truncate(mixing, self.inner(geometry)))
            branches.append((subspace[..., None, None], pointwise[..., None, None], window))
        return branches

    def regularization(self, module: nn.Module) -> Tensor:
        """Return how far the subspace convs are from orthonormal rows: the sum of ||P P^T - I||_F, differentiable.

        Haase & Amthor, CVPR 2020, equation 6, add it to the loss with a weight of 0.1 when training from scratch: rows
        that coincide would waste the inner width. P is (inner, C) per group.

        Args:
            module: what `build` made, or a module that holds several of them, as a converted model does.
        """
        total = super().regularization(module)
        for name, conv in module.named_modules():
            if name.rpartition(".")[2] == "subspace" and isinstance(conv, nn.Conv2d):
                rows = conv.weight.flatten(1).unflatten(0, (conv.groups, -1))
                skew = rows @ rows.mT - torch.eye(rows.shape[1], device=rows.device, dtype=rows.dtype)
                total = total + torch.linalg.matrix_norm(skew).sum()
        return total

    def _mixings(self, geometry: Geometry, groups: Sequence[Parts]) -> tuple[Tensor, Tensor]:
        """Return pointwise matrices (T, groups, O/groups, C/groups) for windows (T, O, kh*kw) of norm one.

        With the singular values all on this side, cutting the width costs exactly the energy it drops.
        """
        mixings, windows = (torch.cat(part, 1) for part in zip(*groups, strict=True))
        norms = windows.norm(dim=2, keepdim=True)
        norms = torch.where(norms > 0, norms, 1.0)
        return (mixings * norms).unflatten(1, (geometry.groups, -1)), windows / norms


@dataclass(frozen=True)
class SubspaceFit(BlueprintFit):
    """A blueprint whose mixings are kept at an inner `width` (of one group).

    After every least-squares step each branch's mixing matrix is cut to its best low rank in the metrics of the
    outputs and of the channels' covariance (reduced-rank regression, Izenman 1975).
    """

    width: int

    def sweep(self, normal: Normal, factors: Parts) -> Parts:
        """Take one round, and keep it if it helps: the cut is a projection, not the minimum."""
        moved = super().sweep(normal, factors)
        return moved if normal.cost(self.kernel(moved)) < normal.cost(self.kernel(factors)) else factors

    def _mixings(self, normal: Normal, factors: Parts) -> Tensor:
        mixings = super()._mixings(normal, factors)
        left, left_inverse = roots(normal.metric)
        right, right_inverse = roots(normal.covariance.diagonal(dim1=1, dim2=3).sum(-1))
        tall, wide = svd.truncate(left @ mixings @ right, min(self.width, *mixings.shape[1:]))
        return left_inverse @ (tall @ wide) @ right_inverse
