"""What forms of plain convs have in common: equal branches, each a chain of named stages, that are summed.

A form's own file says what is particular to it, and all else follows:

* `full_rank` and `stages`: how far its rank goes, and which convs stand in a branch;
* `factored`: its factors of a kernel, from the weights alone;
* `scheme`: where its fit to data starts and how one sweep improves it (see `leastsquares`);
* `kernels`: the convs' kernels from the factors.

Nothing else in the package asks which form it has before it. Derive from it and pass the class where forms are read
from files, `Plan.load(path, forms=[MyForm])`; nothing is registered anywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import FormError
from convsurgeon.forms.form import Form
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.leastsquares import Parts, Scheme
from convsurgeon.forms.modules import ACTIVATIONS, NORMS, SummedBranches, chain, composed
from convsurgeon.forms.ranks import Energy, Rule, Share, rule_from_dict, rule_to_dict

Stages = tuple[tuple[str, Geometry], ...]

Known = dict[Any, Any]
"""Of one kernel: what forms found out about it. Forms of many ranks share it."""


@dataclass(frozen=True)
class Branched:
    """Equal branches, each a chain of named stages, that are summed; the base of every form that ships.

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

    def factored(self, geometry: Geometry, weight: Tensor, known: Known | None = None) -> list[Parts]:
        """The factors, group by group and in float64, that come nearest to a kernel (O, C/groups, kh, kw)."""
        raise NotImplementedError

    def scheme(self, geometry: Geometry) -> Scheme:
        """How the factors of one group are fitted to data."""
        raise NotImplementedError

    def kernels(self, geometry: Geometry, groups: Sequence[Parts]) -> list[tuple[Tensor, ...]]:
        """The kernels of every branch's stages, from the factors of every group."""
        raise NotImplementedError

    # What follows from it.

    @property
    def label(self) -> str:
        """Name and parameters in a table's words: `separable rank 2`."""
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
        """Branches of the settled form that are summed."""
        return self._rank

    def check(self, geometry: Geometry) -> str | None:
        """Why a conv of this geometry cannot take the form, or None."""
        if len(geometry.kernel_size) != 2 or geometry.transposed:
            return "only Conv2d is rewritten"
        if geometry.depthwise:
            return "already depthwise"
        return "1x1 kernel: nothing to separate" if geometry.taps == 1 else None

    def settle(self, geometry: Geometry, weight: Tensor, known: Known | None = None) -> Self:
        """The form with the rank that its rule gives for this kernel (O, C/groups, kh, kw), at most the full one.

        Args:
            geometry: of the conv.
            weight: its kernel; only an `Energy` rule reads it.
            known: what is known of this very kernel; what is missing is added.
        """
        if isinstance(self.rank, int):
            return dataclasses.replace(self, rank=min(self.rank, self.full_rank(geometry)))
        if isinstance(self.rank, Share):
            return dataclasses.replace(self, rank=self._shared(self.rank, geometry))
        if weight.is_meta:
            raise FormError(f"{self.label}: the rule reads weights, and this model is on the meta device; pass an int")
        return dataclasses.replace(self, rank=self._keeping(self.rank, geometry, weight, known))

    def _shared(self, rule: Share, geometry: Geometry) -> int:
        """The rank that a share of the MACs allows."""
        windows = zip(geometry.dilation, geometry.kernel_size, strict=True)
        size = tuple(4 * dilation * taps + 64 for dilation, taps in windows)  # nominal: only ratios count

        def macs(rank: int) -> int:
            return dataclasses.replace(self, rank=rank).macs(geometry, size)

        return self.even_width(rule.rank(self.full_rank(geometry), macs, geometry.macs(size)))

    def even_width(self, rank: int) -> int:
        """The largest rank up to this one that a rule may choose: onnxruntime's blocked layout wants even widths."""
        step = self.width_steps[0] if rank >= 16 else self.width_steps[1] if rank >= 8 else 1
        return rank // step * step

    def _keeping(self, rule: Energy, geometry: Geometry, weight: Tensor, known: Known | None) -> int:
        """The smallest rank that keeps a share of the energy, by halving: `lost` never rises with rank."""
        low, high = 1, self.full_rank(geometry)
        while low < high:
            middle = (low + high) // 2
            lost = dataclasses.replace(self, rank=middle).lost(geometry, weight, known)
            low, high = (low, middle) if lost is not None and lost <= 1 - rule.share + 1e-12 else (middle + 1, high)
        return low

    def lost(self, geometry: Geometry, weight: Tensor, known: Known | None = None) -> float | None:
        """Share of the kernel's energy dropped; None for `init="random"` and on the meta device."""
        if self.init == "random" or weight.is_meta:
            return None
        exact = weight.detach().double()
        dense = self._summed(geometry, self.kernels(geometry, self.factored(geometry, weight, known)))
        total = float(exact.square().sum())
        return float((exact - dense).square().sum()) / total if total > 0 else 0.0

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
        self.assign(module, self.kernels(geometry, self.factored(geometry, weight)), bias, weight.dtype)

    def assign(
        self, module: nn.Module, kernels: Sequence[tuple[Tensor, ...]], bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        """Puts one tuple of stage kernels per branch, and the bias, into a module made by `build`."""
        for branch, stages in zip(_convs(module), kernels, strict=True):
            for conv, kernel in zip(branch, stages, strict=True):
                conv.weight = nn.Parameter(kernel.to(dtype).contiguous())
        if bias is not None:
            _convs(module)[0][-1].bias = nn.Parameter(bias.detach().clone())

    def dense(self, module: nn.Module, geometry: Geometry) -> Tensor:
        """The dense kernel (O, C/groups, kh, kw) that a module made by `build` computes, read from its weights."""
        kernels = [tuple(conv.weight.detach() for conv in branch) for branch in _convs(module)]
        return self._summed(geometry, kernels)

    def _summed(self, geometry: Geometry, kernels: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """The dense kernel of branches, from the kernels of their stages."""
        groups = [stage.groups for _, stage in self.stages(geometry)]
        branches = [composed(list(zip(stages, groups, strict=True)), geometry.groups) for stages in kernels]
        return torch.stack(branches).sum(0)

    def regularization(self, module: nn.Module) -> Tensor:
        """What training this form from scratch may add to the loss; 0 but for the subspace form."""
        return next(module.parameters()).new_zeros(())

    def to_dict(self) -> dict[str, Any]:
        """The form as JSON: its name and the fields that differ from their defaults."""
        values: dict[str, Any] = {"form": self.name}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name == "rank" or value != item.default:
                values[item.name] = rule_to_dict(value) if isinstance(value, Rule) else value
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads the fields that `to_dict` wrote, without the name.

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

    @property
    def _rank(self) -> int:
        if not isinstance(self.rank, int):
            raise FormError(f"{self.label}: the rank is not settled yet; call settle(geometry, weight) first")
        return self.rank


def branched(form: Form) -> Branched | None:
    """The form if it is of this kind, so that its graph is known and its ranks share what is found out."""
    return form if isinstance(form, Branched) else None


def exceeds(form: Form, geometry: Geometry) -> str | None:
    """That a settled form has a higher rank than a conv of this geometry can, in words, or None."""
    found = branched(form)
    full = 0 if found is None else found.full_rank(geometry)
    if found is None or not isinstance(found.rank, int) or found.rank <= full:
        return None
    limit = f"{geometry.kernel} kernel" if full == geometry.taps else f"{full} is exact here"
    return f"rank {found.rank} exceeds {full} ({limit}); pass rank <= {full}"


def fittable(form: Form) -> Branched | None:
    """The form if it can be fitted to data."""
    found = branched(form)
    return found if found is not None and found.fittable else None


def _convs(module: nn.Module) -> list[list[nn.Conv2d]]:
    """The convs of every branch of a module made by `build`."""
    assert isinstance(module, SummedBranches)
    return [[conv for conv in branch.modules() if isinstance(conv, nn.Conv2d)] for branch in module.branches]


def _choice(where: str, name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise FormError(f"{where}: {name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
