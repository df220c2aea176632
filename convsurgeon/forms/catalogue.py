"""The forms a dense conv can take, as frozen values.

A kernel `W[o, c, k]` (k over the kh*kw taps) is a pile of small matrices, and every form is a low-rank factorisation of
one way to pile them. Rank T means T branches that are summed:

* `DepthwiseSeparable`: for each input channel c, `W[:, c, :]` (O x K) becomes T depthwise filters and T pointwise
  columns. `y = sum_t pointwise_t(depthwise_t(x))`; the window's stride, padding and dilation sit on the depthwise conv.
  Exact at T = min(K, O). Guo et al., Network Decoupling, BMVC 2018.
* `Blueprint` (BSConv-U): for each output channel o, `W[o, :, :]` (C x K) is factored: pointwise first, then depthwise.
  Exact at T = min(K, C). The pointwise conv has no bias, or zero padding would see it. Haase & Amthor, CVPR 2020.
* `BlueprintSubspace` (BSConv-S): a blueprint whose pointwise matrix (O x C) is itself cut to a narrower inner width.

With groups all of this holds group by group (O and C are then per group), and the pointwise convs carry the groups.
A form is any object with the `Form` protocol; nothing is registered anywhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import FormError
from convsurgeon.forms import svd
from convsurgeon.forms.form import Branched, Energy, Form, Rule, Share, Spectra, Stages
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.lowrank import SpatialSeparable, Tucker


@dataclass(frozen=True)
class DepthwiseSeparable(Branched):
    """Depthwise, then pointwise; `rank` of them summed. Guo et al., BMVC 2018; exact at rank min(kh*kw, O/groups)."""

    name: ClassVar[str] = "depthwise_separable"
    word: ClassVar[str] = "separable"

    def full_rank(self, geometry: Geometry) -> int:
        """min(kh*kw, output channels per group)."""
        return min(geometry.taps, geometry.out_per_group)

    def stages(self, geometry: Geometry) -> Stages:
        """Depthwise with the window, pointwise with the channels."""
        depthwise = _depthwise(geometry, geometry.in_channels, bias=False)
        return ("depthwise", depthwise), ("pointwise", _pointwise(geometry, geometry.in_channels, bias=geometry.bias))

    def matrices(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """One (O/groups, kh*kw) matrix per input channel."""
        grouped: Tensor = weight.flatten(2).unflatten(0, (geometry.groups, -1))
        return grouped.transpose(1, 2).flatten(0, 1)

    def kernels(self, geometry: Geometry, factors: svd.Factors) -> list[tuple[Tensor, ...]]:
        """Per branch: depthwise (C, 1, kh, kw) and pointwise (O, C/groups, 1, 1)."""
        left = factors.left.unflatten(0, (geometry.groups, -1)).transpose(1, 2).flatten(0, 1)
        return [(_window(geometry, factors.right[:, t]), left[..., t, None, None]) for t in range(self._rank)]


@dataclass(frozen=True)
class Blueprint(Branched):
    """Pointwise, then depthwise (BSConv-U); `rank` of them summed. Exact at rank min(kh*kw, C/groups).

    Haase & Amthor, CVPR 2020. The pointwise conv runs before the stride, so at stride 2 it costs four times what the
    separable form does.
    """

    name: ClassVar[str] = "blueprint"
    word: ClassVar[str] = "blueprint"

    def full_rank(self, geometry: Geometry) -> int:
        """min(kh*kw, input channels per group)."""
        return min(geometry.taps, geometry.in_per_group)

    def stages(self, geometry: Geometry) -> Stages:
        """Pointwise with the channels, depthwise with the window."""
        depthwise = _depthwise(geometry, geometry.out_channels, bias=geometry.bias)
        return ("pointwise", _pointwise(geometry, geometry.in_channels, bias=False)), ("depthwise", depthwise)

    def matrices(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """One (C/groups, kh*kw) matrix per output channel."""
        return weight.flatten(2)

    def kernels(self, geometry: Geometry, factors: svd.Factors) -> list[tuple[Tensor, ...]]:
        """Per branch: pointwise (O, C/groups, 1, 1) and depthwise (O, 1, kh, kw)."""
        ranks = range(self._rank)
        return [(factors.left[..., t, None, None], _window(geometry, factors.right[:, t])) for t in ranks]


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
        """`subspace rank 1 width 0.25`."""
        return f"{super().label} width {self.width:g}"

    def inner(self, geometry: Geometry) -> int:
        """Inner channels per group."""
        wanted = 4 * math.ceil(self.width * geometry.in_per_group / 4)
        return min(wanted, geometry.in_per_group, geometry.out_per_group)

    def stages(self, geometry: Geometry) -> Stages:
        """Two pointwise convs with the inner width between them, then depthwise."""
        inner = self.inner(geometry) * geometry.groups
        narrow = dataclasses.replace(_pointwise(geometry, geometry.in_channels, bias=False), out_channels=inner)
        depthwise = _depthwise(geometry, geometry.out_channels, bias=geometry.bias)
        return ("subspace", narrow), ("pointwise", _pointwise(geometry, inner, bias=False)), ("depthwise", depthwise)

    def lost(self, geometry: Geometry, weight: Tensor, known: Spectra | None = None) -> float | None:
        """Share of the kernel's energy dropped by the rank and by the width together."""
        if self.init == "random" or weight.is_meta:
            return None
        energies = self.spectrum(geometry, weight, known)
        factors = svd.truncate(self.matrices(geometry, weight), self._rank)
        total = float(energies.sum())
        mixings = self._mixings(geometry, factors)[0].flatten(0, 1)
        narrowed = float(svd.spectrum(mixings)[self.inner(geometry) :].sum())
        return svd.lost(energies, self._rank) + (max(0.0, narrowed) / total if total > 0 else 0.0)

    def kernels(self, geometry: Geometry, factors: svd.Factors) -> list[tuple[Tensor, ...]]:
        """Per branch: subspace (inner, C/groups, 1, 1), pointwise (O, inner/groups, 1, 1), depthwise (O, 1, kh, kw)."""
        mixings, windows = self._mixings(geometry, factors)
        branches: list[tuple[Tensor, ...]] = []
        for mixing, window in zip(mixings, windows, strict=True):
            narrow = svd.truncate(mixing, self.inner(geometry))
            pointwise, subspace = narrow.left.flatten(0, 1), narrow.right.flatten(0, 1)
            branches.append((subspace[..., None, None], pointwise[..., None, None], _window(geometry, window)))
        return branches

    def regularization(self, module: nn.Module) -> Tensor:
        """How far the subspace convs are from orthonormal rows: the sum over them of ||P P^T - I||_F, differentiable.

        Haase & Amthor, CVPR 2020, equation 6, add it to the loss with a weight of 0.1 when training from scratch: rows
        that coincide would waste the inner width. P is (inner, C) per group.

        Args:
            module: what `build` made, or a module that holds several of them, as a converted model does.
        """
        groups = [conv for name, conv in module.named_modules() if name.rpartition(".")[2] == "subspace"]
        parts = [_skewness(conv) for conv in groups if isinstance(conv, nn.Conv2d)]
        return torch.stack(parts).sum() if parts else super().regularization(module)

    def _mixings(self, geometry: Geometry, factors: svd.Factors) -> tuple[Tensor, Tensor]:
        """Pointwise matrices (T, groups, O/groups, C/groups) for windows (T, O, kh*kw) of norm one.

        With the singular values all on this side, cutting the width costs exactly the energy it drops.
        """
        norms = factors.right.norm(dim=2, keepdim=True)
        norms = torch.where(norms > 0, norms, 1.0)
        mixings = (factors.left * norms.mT).permute(2, 0, 1).unflatten(1, (geometry.groups, -1))
        return mixings, (factors.right / norms).transpose(0, 1)


FORMS: tuple[type[Branched], ...] = (DepthwiseSeparable, Blueprint, BlueprintSubspace, SpatialSeparable, Tucker)


def form_from_dict(values: Mapping[str, Any]) -> Form:
    """Reads what `to_dict` wrote.

    Raises:
        FormError: an unknown form or field, or a value out of range.
    """
    fields = dict(values)
    name = fields.pop("form", None)
    kinds = {kind.name: kind for kind in FORMS}
    if not isinstance(name, str) or name not in kinds:
        raise FormError(f"unknown form {name!r}; known are {', '.join(kinds)}")
    if isinstance(fields.get("rank"), dict):
        fields["rank"] = _rule(fields["rank"])
    known = {item.name for item in dataclasses.fields(kinds[name])}
    if unknown := sorted(set(fields) - known):
        raise FormError(f"{name}: unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return kinds[name](**fields)


def _rule(values: dict[str, Any]) -> Rule:
    for rule in (Energy, Share):
        share = values.get(rule.__name__.lower())
        if isinstance(share, int | float) and len(values) == 1:
            return rule(share)
    raise FormError(f'a rank rule reads {{"energy": 0.9}} or {{"share": 0.5}}, got {values}')


def _skewness(conv: nn.Conv2d) -> Tensor:
    """||P P^T - I||_F of every group's matrix, summed over the groups."""
    rows = conv.weight.flatten(1).unflatten(0, (conv.groups, -1))
    skew: Tensor = rows @ rows.mT - torch.eye(rows.shape[1], device=rows.device, dtype=rows.dtype)
    total: Tensor = torch.linalg.matrix_norm(skew).sum()
    return total


def _depthwise(geometry: Geometry, channels: int, bias: bool) -> Geometry:
    return dataclasses.replace(geometry, in_channels=channels, out_channels=channels, groups=channels, bias=bias)


def _pointwise(geometry: Geometry, in_channels: int, bias: bool) -> Geometry:
    one = (1, 1)
    return Geometry(in_channels, geometry.out_channels, one, one, (0, 0), one, geometry.groups, "zeros", bias)


def _window(geometry: Geometry, rows: Tensor) -> Tensor:
    """(channels, kh*kw) as a depthwise kernel (channels, 1, kh, kw)."""
    kernel: Tensor = rows.unflatten(1, (1, *geometry.kernel_size))
    return kernel
