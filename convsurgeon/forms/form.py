"""What the pass asks of a form, the rank rules, and what all forms of summed branches have in common."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import FormError
from convsurgeon.forms import svd
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.modules import ACTIVATIONS, NORMS, SummedBranches, chain

Stages = tuple[tuple[str, Geometry], ...]

Spectra = dict[type["Branched"], Tensor]
"""Of one kernel, by kind of form: what `energies` computed."""


class Form(Protocol):
    """What the pass asks of a form. All methods are pure but `fill`."""

    @property
    def label(self) -> str:
        """Name and parameters in a table's words: `separable rank 2`."""
        ...

    def check(self, geometry: Geometry) -> str | None:
        """Why a conv of this geometry cannot take the form, or None."""
        ...

    def settle(self, geometry: Geometry, weight: Tensor) -> Self:
        """The form with every rule (such as `Energy`) replaced by the number it gives for this kernel."""
        ...

    def lost(self, geometry: Geometry, weight: Tensor) -> float | None:
        """Share of the kernel's energy that the settled form drops; None where it keeps nothing on purpose."""
        ...

    def params(self, geometry: Geometry) -> int:
        """Parameters of the settled form."""
        ...

    def macs(self, geometry: Geometry, size: Sequence[int]) -> int:
        """Multiply-accumulates of the settled form for one image of spatial `size`."""
        ...

    def build(self, geometry: Geometry, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The modules of the settled form; parameters need no values yet."""
        ...

    def fill(self, module: nn.Module, geometry: Geometry, weight: Tensor, bias: Tensor | None) -> None:
        """Gives a module made by `build` its parameters."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The form as JSON; `form` holds its name."""
        ...


@dataclass(frozen=True)
class Energy:
    """Rank rule: the smallest rank that keeps this share of a kernel's energy (its squared norm).

    Args:
        share: 0 < share <= 1.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise FormError(f"Energy: the share must lie in (0, 1], got {self.share}; pass for example Energy(0.9)")

    def rank(self, energies: Tensor) -> int:
        """The rank for a spectrum (largest first), at least 1."""
        reached = energies.cumsum(0) >= self.share * energies.sum() * (1 - 1e-12)
        return int(reached.to(torch.int8).argmax()) + 1

    def __str__(self) -> str:
        return f"energy {self.share:g}"


@dataclass(frozen=True)
class Share:
    """Rank rule: the largest rank that leaves a layer this share of its MACs, at least 1.

    From 16 on ranks are multiples of 8: onnxruntime's blocked layout wants such channel counts inside a layer too.

    Args:
        share: 0 < share <= 1.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise FormError(f"Share: the share must lie in (0, 1], got {self.share}; pass for example Share(0.5)")

    def rank(self, full: int, macs: Callable[[int], int], dense: int) -> int:
        """The rank up to `full`, given the MACs of a rank and those of the dense layer."""
        ranks = range(1, full + 1)
        fitting = bisect.bisect_right(ranks, self.share * dense, key=macs)
        return max(1, fitting if fitting < 16 else fitting // 8 * 8)

    def __str__(self) -> str:
        return f"share {self.share:g}"


Rule = Energy | Share


@dataclass(frozen=True)
class Branched:
    """What the forms of this package have in common: equal branches, each a chain of named stages, that are summed.

    Args:
        rank: number of branches, or width inside the only one; or a rule for it.
        init: `"factor"` keeps what the kernel holds; `"random"` draws new weights, for training from scratch.
        norm: `"batch"` puts a batch norm after every conv of a branch but the last; needs `init="random"`.
        activation: `"relu"`, `"relu6"`, `"silu"`, `"hardswish"` or `"gelu"` there likewise.

    Raises:
        FormError: a parameter out of range, or `norm` or `activation` with `init="factor"`: they change the function.
    """

    rank: int | Rule = 1
    init: str = "factor"
    norm: str | None = None
    activation: str | None = None

    name: ClassVar[str]
    word: ClassVar[str]

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not isinstance(self.rank, Rule) and (isinstance(self.rank, bool) or not isinstance(self.rank, int)):
            raise FormError(f"{where}: rank must be an int or a rule such as Energy(0.9), got {self.rank!r}")
        if isinstance(self.rank, int) and self.rank < 1:
            raise FormError(f"{where}: rank must be at least 1, got {self.rank}")
        _choice(where, "init", self.init, ("factor", "random"))
        _choice(where, "norm", self.norm, (None, *NORMS))
        _choice(where, "activation", self.activation, (None, *ACTIVATIONS))
        if self.init == "factor" and (self.norm or self.activation):
            raise FormError(
                f"{where}: norm and activation change what the layer computes; pass init='random' with them"
            )
        if self.init == "random" and isinstance(self.rank, Energy):
            raise FormError(f"{where}: a rank rule reads the weights that init='random' throws away; pass an int")

    # What each form says of itself.

    def full_rank(self, geometry: Geometry) -> int:
        """The largest rank that makes sense, at which the form is exact."""
        raise NotImplementedError

    def stages(self, geometry: Geometry) -> Stages:
        """The convs of one branch, in order; the last one carries the bias if the conv has one."""
        raise NotImplementedError

    def matrices(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """The kernel piled up for factoring, (B, M, N)."""
        raise NotImplementedError

    def kernels(self, geometry: Geometry, factors: svd.Factors) -> list[tuple[Tensor, ...]]:
        """The kernels of every branch's stages."""
        raise NotImplementedError

    # What follows from it.

    @property
    def label(self) -> str:
        """Name and parameters in a table's words: `separable rank 2`."""
        return f"{self.word} {self.rank if isinstance(self.rank, Rule) else f'rank {self.rank}'}"

    def check(self, geometry: Geometry) -> str | None:
        """Why a conv of this geometry cannot take the form, or None."""
        if len(geometry.kernel_size) != 2 or geometry.transposed:
            return "only Conv2d is rewritten"
        if geometry.depthwise:
            return "already depthwise"
        if geometry.taps == 1:
            return "1x1 kernel: nothing to separate"
        full = self.full_rank(geometry)
        if isinstance(self.rank, int) and self.rank > full:
            return f"rank {self.rank} exceeds {full} ({_limit(geometry, full)}); pass rank <= {full}"
        return None

    def settle(self, geometry: Geometry, weight: Tensor, known: Spectra | None = None) -> Self:
        """The form with an `Energy` rule replaced by the rank it gives for this kernel (O, C/groups, kh, kw)."""
        if isinstance(self.rank, int):
            return self
        if isinstance(self.rank, Share):
            size = tuple(
                4 * dilation * taps + 64 for dilation, taps in _windows(geometry)
            )  # nominal: only ratios count

            def macs(rank: int) -> int:
                return dataclasses.replace(self, rank=rank).macs(geometry, size)

            return dataclasses.replace(self, rank=self.rank.rank(self.full_rank(geometry), macs, geometry.macs(size)))
        if weight.is_meta:
            raise FormError(f"{self.label}: the rule reads weights, and this model is on the meta device; pass an int")
        return dataclasses.replace(self, rank=self.rank.rank(self.spectrum(geometry, weight, known)))

    def spectrum(self, geometry: Geometry, weight: Tensor, known: Spectra | None = None) -> Tensor:
        """Energy in each singular direction, largest first, summed over the layer: (full rank,) float64.

        Args:
            geometry: of the conv.
            weight: its kernel (O, C/groups, kh, kw).
            known: spectra of this very kernel; what is missing is added, so that forms of many ranks share one.
        """
        return self._recalled(geometry, weight, known)

    def energies(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """What is to be known of a kernel to tell what any rank loses: its spectrum."""
        return svd.spectrum(self.matrices(geometry, weight))

    def _recalled(self, geometry: Geometry, weight: Tensor, known: Spectra | None) -> Tensor:
        """`energies`, computed once for all forms of a kind."""
        known = {} if known is None else known
        if type(self) not in known:
            known[type(self)] = self.energies(geometry, weight)
        return known[type(self)]

    def lost(self, geometry: Geometry, weight: Tensor, known: Spectra | None = None) -> float | None:
        """Share of the kernel's energy dropped; None for `init="random"` and on the meta device."""
        if self.init == "random" or weight.is_meta:
            return None
        return svd.lost(self.spectrum(geometry, weight, known), self._rank)

    def params(self, geometry: Geometry) -> int:
        """Parameters of all branches; the bias is counted once."""
        stages = self.stages(geometry)
        inner = sum(stage.out_channels for _, stage in stages[:-1]) * 2 if self.norm else 0
        weights = sum(stage.weights for _, stage in stages) + inner
        return self.branches * weights + (geometry.out_channels if geometry.bias else 0)

    def macs(self, geometry: Geometry, size: Sequence[int]) -> int:
        """Multiply-accumulates of all branches for one image of spatial `size`."""
        total = 0
        for _, stage in self.stages(geometry):
            total += stage.macs(size)
            size = stage.output_size(size)
        return self.branches * total

    def build(self, geometry: Geometry, device: torch.device, dtype: torch.dtype) -> SummedBranches:
        """The branches: on the meta device until `fill` for `init="factor"`, drawn at random otherwise."""
        device = device if self.init == "random" else torch.device("meta")
        first = self.stages(geometry)
        name, last = first[-1]
        rest = (*first[:-1], (name, dataclasses.replace(last, bias=False)))
        chains = [
            chain(first if index == 0 else rest, self.norm, self.activation, device=device, dtype=dtype)
            for index in range(self.branches)
        ]
        return SummedBranches(chains, geometry)

    def fill(self, module: nn.Module, geometry: Geometry, weight: Tensor, bias: Tensor | None) -> None:
        """Factors the kernel (O, C/groups, kh, kw) into the branches; the bias goes to the first one's last conv."""
        if self.init == "random" or weight.is_meta:
            return
        factors = svd.truncate(self.matrices(geometry, weight), self._rank)
        self.assign(module, self.kernels(geometry, factors), bias, weight.dtype)

    def assign(
        self, module: nn.Module, kernels: list[tuple[Tensor, ...]], bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        """Puts one tuple of stage kernels per branch, and the bias, into a module made by `build`."""
        assert isinstance(module, SummedBranches)
        for branch, stages in zip(module.branches, kernels, strict=True):
            assert isinstance(branch, nn.Sequential)
            for conv, kernel in zip(branch, stages, strict=True):
                conv.weight = nn.Parameter(kernel.to(dtype).contiguous())
        if bias is not None:
            module.branches[0][-1].bias = nn.Parameter(bias.detach().clone())  # type: ignore[index]

    def regularization(self, module: nn.Module) -> Tensor:
        """What training this form from scratch may add to the loss; 0 but for the subspace form."""
        return next(module.parameters()).new_zeros(())

    def to_dict(self) -> dict[str, Any]:
        """The form as JSON: its name and the fields that differ from their defaults."""
        values: dict[str, Any] = {"form": self.name}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name == "rank" or value != item.default:
                values[item.name] = {type(value).__name__.lower(): value.share} if isinstance(value, Rule) else value
        return values

    @property
    def branches(self) -> int:
        """Branches of the settled form that are summed."""
        return self._rank

    @property
    def _rank(self) -> int:
        if not isinstance(self.rank, int):
            raise FormError(f"{self.label}: the rank is not settled yet; call settle(geometry, weight) first")
        return self.rank


def _choice(where: str, name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise FormError(f"{where}: {name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _windows(geometry: Geometry) -> list[tuple[int, int]]:
    return list(zip(geometry.dilation, geometry.kernel_size, strict=True))


def _limit(geometry: Geometry, full: int) -> str:
    """What caps the rank, in words."""
    return f"{geometry.kernel} kernel" if full == geometry.taps else f"{full} channels per group"
