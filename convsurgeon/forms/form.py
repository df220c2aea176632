"""`Form`: what a dense conv can become. The package's own forms and users' forms derive from it alike.

A form of one's own is a frozen dataclass
with a `name` (for JSON), a `word` (for tables) and four methods: `full_rank`, `stages`, `scheme` and `kernels`. It may
add `factored` (factors from the weights alone) and `energies` (what every rank loses). Pass the class where forms are
read from files: `Plan.load(path, forms=[MyForm])`; nothing is registered anywhere.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import FormError
from convsurgeon.forms import svd
from convsurgeon.forms.covariance import Whole
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.leastsquares import Normal, Parts, Scheme, alternate
from convsurgeon.forms.modules import ACTIVATIONS, NORMS, SummedBranches, chain, compose
from convsurgeon.forms.ranks import Energy, Rule, Share, rule_from_dict

Stages = tuple[tuple[str, Geometry], ...]

Known = dict[Any, Any]
"""What forms computed about one kernel; forms of one class share it, whatever their rank."""


@dataclass(frozen=True)
class Form(ABC):
    """What a dense conv can become: equal branches that are summed, each a chain of named convs.

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
    width_steps: ClassVar[tuple[int, int]] = (8, 1)
    """Ranks that rules choose are multiples of the first from 16 on, of the second from 8 on."""
    summed: ClassVar[bool] = True
    """Whether the rank counts branches; otherwise there is one branch, and the rank is its width."""

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not isinstance(self.rank, Rule) and (isinstance(self.rank, bool) or not isinstance(self.rank, int)):
            raise FormError(f"{where}: rank must be an int or a rule such as Energy(0.9), got {self.rank!r}")
        if isinstance(self.rank, int) and self.rank < 1:
            raise FormError(f"{where}: rank must be at least 1, got {self.rank}")
        choices = {"init": ("factor", "random"), "norm": (None, *NORMS), "activation": (None, *ACTIVATIONS)}
        for field, allowed in choices.items():
            if (value := getattr(self, field)) not in allowed:
                raise FormError(f"{where}: {field} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        if self.init == "factor" and (self.norm or self.activation):
            raise FormError(f"{where}: norm and activation change what the layer computes; pass init='random' too")
        if self.init == "random" and isinstance(self.rank, Energy):
            raise FormError(f"{where}: a rank rule reads the weights that init='random' throws away; pass an int")

    @abstractmethod
    def full_rank(self, geometry: Geometry) -> int:
        """Return the largest rank that makes sense, at which the form is exact."""

    @abstractmethod
    def stages(self, geometry: Geometry) -> Stages:
        """Return the convs of one branch, in order; the last one carries the bias if the conv has one."""

    @abstractmethod
    def scheme(self, geometry: Geometry) -> Scheme:
        """Return how the factors of one group are fitted to data."""

    @abstractmethod
    def kernels(self, geometry: Geometry, groups: Sequence[Parts]) -> list[tuple[Tensor, ...]]:
        """Return the kernels of every branch's stages, from the factors of every group."""

    def factored(self, geometry: Geometry, weight: Tensor) -> list[Parts]:
        """Return factors of every group that come near to a kernel (O, C/groups, kh, kw), in float64.

        By default the scheme fits them to white noise. A closed form is faster and exact.
        """
        scheme, found = self.scheme(geometry), []
        for kernel in weight.detach().double().flatten(2).unflatten(0, (geometry.groups, -1)):
            white = torch.eye(kernel[0].numel(), dtype=torch.float64, device=weight.device)
            normal = Normal(
                Whole(white),
                kernel,
                torch.eye(len(kernel), dtype=white.dtype, device=white.device),
                regression=kernel,
            )
            found.append(alternate(scheme, normal, scheme.start(normal, kernel), 10))
        return found

    def energies(self, geometry: Geometry, weight: Tensor) -> Tensor | None:
        """Return the energy of every term, largest first, (full rank,); None where the terms are not orthogonal."""
        return None

    @property
    def label(self) -> str:
        """Name and parameters as tables have them: `separable rank 2`."""
        return f"{self.word} {self.rank if isinstance(self.rank, Rule) else f'rank {self.rank}'}"

    @property
    def fittable(self) -> bool:
        """Whether it keeps what a kernel holds, so that it can be fitted to data."""
        return self.init == "factor"

    @property
    def plain(self) -> bool:
        """Whether nothing but the convs of its stages is built, so that its graph is known."""
        return not (self.norm or self.activation)

    @property
    def branches(self) -> int:
        """How many branches of the settled form are summed."""
        return self.settled_rank if self.summed else 1

    @property
    def settled_rank(self) -> int:
        """The rank, once it is a number; a FormError before."""
        if not isinstance(self.rank, int):
            raise FormError(f"{self.label}: the rank is not settled yet; call settle(geometry, weight) first")
        return self.rank

    def check(self, geometry: Geometry) -> str | None:
        """Return why a conv of this geometry cannot take the form, or None."""
        if len(geometry.kernel_size) != 2 or geometry.transposed:
            return "only Conv2d is rewritten"
        if geometry.depthwise:
            return "already depthwise"
        return "1x1 kernel: nothing to separate" if geometry.taps == 1 else None

    def exceeds(self, geometry: Geometry) -> str | None:
        """Return that the settled form's rank is higher than a conv of this geometry can use, in words, or None."""
        full = self.full_rank(geometry)
        if not isinstance(self.rank, int) or self.rank <= full:
            return None
        limit = f"{geometry.kernel} kernel" if full == geometry.taps else f"{full} is exact here"
        return f"rank {self.rank} exceeds {full} ({limit}); pass rank <= {full}"

    def settle(self, geometry: Geometry, weight: Tensor, known: Known | None = None) -> Self:
        """Return the form with the rank that its rule gives for this kernel, at most the full one."""
        if isinstance(self.rank, Share):
            rank = self._sharing(self.rank, geometry)
        elif isinstance(self.rank, Energy):
            rank = self._keeping(self.rank, geometry, weight, known)
        else:
            rank = min(self.settled_rank, self.full_rank(geometry))
        return dataclasses.replace(self, rank=rank)

    def _sharing(self, rule: Share, geometry: Geometry) -> int:
        """Return the rank that a share of the MACs allows."""
        windows = zip(geometry.dilation, geometry.kernel_size, strict=True)
        size = tuple(4 * dilation * taps + 64 for dilation, taps in windows)  # nominal: only ratios count

        def macs(rank: int) -> int:
            return dataclasses.replace(self, rank=rank).macs(geometry, size)

        return self.even_width(rule.rank(self.full_rank(geometry), macs, geometry.macs(size)))

    def even_width(self, rank: int) -> int:
        """Return the largest rank up to this one that a rule may choose: onnxruntime's blocked layout is even."""
        step = self.width_steps[0] if rank >= 16 else self.width_steps[1] if rank >= 8 else 1
        return rank // step * step

    def _keeping(self, rule: Energy, geometry: Geometry, weight: Tensor, known: Known | None) -> int:
        """Return the smallest rank that keeps a share of the energy; `lost` never rises with rank."""
        if weight.is_meta:
            raise FormError(f"{self.label}: the rule reads weights, and this model is on the meta device; pass an int")
        low, full = 1, self.full_rank(geometry)
        if (energies := self.spectrum(geometry, weight, known)) is not None:
            low = rule.rank(energies)
            return next((width for width in range(low, full) if self.even_width(width) == width), full)
        high = full
        while low < high:
            middle = (low + high) // 2
            lost = dataclasses.replace(self, rank=middle).lost(geometry, weight, known)
            low, high = (low, middle) if lost is not None and lost <= 1 - rule.share + 1e-12 else (middle + 1, high)
        return low

    def spectrum(self, geometry: Geometry, weight: Tensor, known: Known | None = None) -> Tensor | None:
        """Return `energies`, computed once for all forms of a class; what is missing in `known` is added."""
        known = {} if known is None else known
        if type(self) not in known:
            known[type(self)] = self.energies(geometry, weight)
        found: Tensor | None = known[type(self)]
        return found

    def lost(self, geometry: Geometry, weight: Tensor, known: Known | None = None) -> float | None:
        """Return the share of the kernel's energy dropped; None for `init="random"` and on the meta device."""
        if self.init == "random" or weight.is_meta:
            return None
        if (energies := self.spectrum(geometry, weight, known)) is not None:
            return svd.lost(energies, self.settled_rank)
        exact = weight.detach().double()
        dense = self._summed(geometry, self.kernels(geometry, self.factored(geometry, weight)))
        total = float(exact.square().sum())
        return float((exact - dense).square().sum()) / total if total > 0 else 0.0

    def params(self, geometry: Geometry) -> int:
        """Return the parameters of all branches; the bias is counted once."""
        stages = self.stages(geometry)
        inner = sum(stage.out_channels for _, stage in stages[:-1]) * 2 if self.norm else 0
        weights = sum(stage.weights for _, stage in stages) + inner
        return self.branches * weights + (geometry.out_channels if geometry.bias else 0)

    def macs(self, geometry: Geometry, size: Sequence[int]) -> int:
        """Return the multiply-accumulates of all branches for one image of spatial `size`."""
        total = 0
        for _, stage in self.stages(geometry):
            total += stage.macs(size)
            size = stage.output_size(size)
        return self.branches * total

    def build(self, geometry: Geometry, device: torch.device, dtype: torch.dtype) -> SummedBranches:
        """Return the branches: on the meta device until `fill` for `init="factor"`, drawn at random otherwise."""
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
        """Factor the kernel (O, C/groups, kh, kw) into the branches; the bias goes to the first one's last conv."""
        if self.init == "random" or weight.is_meta:
            return
        self.assign(module, self.kernels(geometry, self.factored(geometry, weight)), bias, weight.dtype)

    def assign(
        self, module: nn.Module, kernels: Sequence[tuple[Tensor, ...]], bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        """Put one tuple of stage kernels per branch, and the bias, into a module made by `build`."""
        for branch, stages in zip(_convs(module), kernels, strict=True):
            for conv, kernel in zip(branch, stages, strict=True):
                conv.weight = nn.Parameter(kernel.to(dtype).contiguous())
        if bias is not None:
            _convs(module)[0][-1].bias = nn.Parameter(bias.detach().clone())

    def dense(self, module: nn.Module, geometry: Geometry) -> Tensor:
        """Return the dense kernel (O, C/groups, kh, kw) that a module made by `build` computes."""
        kernels = [tuple(conv.weight.detach() for conv in branch) for branch in _convs(module)]
        return self._summed(geometry, kernels)

    def _summed(self, geometry: Geometry, kernels: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """Return the dense kernel of branches, from the kernels of their stages."""
        groups = [stage.groups for _, stage in self.stages(geometry)]
        branches = [compose(list(zip(stages, groups, strict=True)), geometry.groups) for stages in kernels]
        return torch.stack(branches).sum(0)

    def regularization(self, module: nn.Module) -> Tensor:
        """Return what training this form from scratch may add to the loss; 0 but for the subspace form."""
        return next(module.parameters()).new_zeros(())

    def to_dict(self) -> dict[str, Any]:
        """Return the form as JSON: its name and the fields that differ from their defaults."""
        values: dict[str, Any] = {"form": self.name}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name == "rank" or value != item.default:
                values[item.name] = {type(value).__name__.lower(): value.share} if isinstance(value, Rule) else value
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read the fields that `to_dict` wrote, without the name.

        Raises:
            FormError: an unknown field, or a value out of range.
        """
        fields = dict(values)
        if isinstance(fields.get("rank"), dict):
            fields["rank"] = rule_from_dict(fields["rank"])
        known = {item.name for item in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise FormError(f"{cls.name}: unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
        return cls(**fields)


def _convs(module: nn.Module) -> list[list[nn.Conv2d]]:
    """Return the convs of every branch of a module made by `build`."""
    assert isinstance(module, SummedBranches)
    return [[conv for conv in branch.modules() if isinstance(conv, nn.Conv2d)] for branch in module.branches]
