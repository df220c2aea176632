r"""CP: a pointwise conv to R channels, a depthwise window on those, a pointwise conv to the outputs. One branch.

The canonical polyadic decomposition with all taps in one mode,

    W[o, c, k] = sum_r expand[o, r] * window[r, k] * reduce[r, c]          y = expand(depthwise(reduce(x)))

Lebedev et al. 2015 (arXiv 1412.6553) split the window too, Phan et al. 2020 (arXiv 2008.05441) keep it whole,
MobileNetV2 calls the shape a linear bottleneck. Separable is the special case whose first conv is made of identities,
blueprint the one whose last is. No bias stands before the last conv, so it is exact under every padding. With groups
everything holds group by group, the rank too. At stride 2 the first conv runs before the stride.

**From the weights alone** the inputs (or the outputs, if that gives fewer terms) are turned into their principal
directions, and the windows of each direction come from its SVD; of all these terms the largest are kept. They are
orthogonal, so the error is the energy of the others, exact once none is left.

**The fit** is variable projection (Golub & Pereyra 1973): for given rows `V[r] = reduce[r] x window[r]` the best
`expand` is a regression, so only reduce and window are searched, by L-BFGS (Nocedal 1980) on

    f(V) = min over B of  tr(M (B V - W) S (B V - W)^T) + mu * sum_r (B^T M B)[r, r] (V S V^T)[r, r]

with the metric `M` of the outputs, the covariance `S` of the patches and the dense kernel `W` of the regression. Its
starting Hessian is the Kronecker product of what each factor couples, from the covariance's marginals over channels and
taps, which is what makes it converge, whatever the start: 100 steps come within 2 to 17 % of what 800 find on 32 and 64
channels; where 16 channels lose next to nothing the tail is longer. The last term bounds the terms (Phan et al.'s
degeneracy: terms that grow and cancel, of which int8 and training suffer): without it their squared norms sum to 30 to
10 000 times the product's, with `mu` = 1e-4 to 2 to 11 times, at no higher an error after as many steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from convsurgeon.forms import svd
from convsurgeon.forms.branched import Known, Stages
from convsurgeon.forms.factorised import Factorised
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.lbfgs import Solver, descended, flat
from convsurgeon.forms.leastsquares import KroneckerSolver, Normal, Parts
from convsurgeon.forms.systems import cholesky, eigen, roots

BOUND = 1e-4
"""`mu`, the price of a term's size: at 1e-5 terms are four times as large, at 1e-3 the error is a few per cent up."""

STEPS = 60
"""Of L-BFGS in a sweep."""

SWEEP_MACS = 4e10
"""What a sweep may cost: layers of 256 channels and more take fewer steps."""

_LEAST_STEPS = 6


@dataclass(frozen=True)
class CP(Factorised):
    """Pointwise to `rank` channels per group, a depthwise window on them, pointwise to the outputs.

    Lebedev et al. 2015; Phan et al. 2020. Widths that rules choose are multiples of 16, and of 8 below that.
    """

    name: ClassVar[str] = "cp"
    word: ClassVar[str] = "cp"
    width_steps: ClassVar[tuple[int, int]] = (16, 8)

    @property
    def branches(self) -> int:
        """One."""
        return 1

    def full_rank(self, geometry: Geometry) -> int:
        """The number of terms: principal inputs (or outputs) times the windows that each can have."""
        inputs, outputs, taps = geometry.in_per_group, geometry.out_per_group, geometry.taps
        return min(inputs * min(taps, outputs), outputs * min(taps, inputs))

    def stages(self, geometry: Geometry) -> Stages:
        """Reduce, the window, expand."""
        inner = self._rank * geometry.groups
        reduce = geometry.pointwise(geometry.in_channels, inner, bias=False)
        expand = geometry.pointwise(inner, geometry.out_channels, bias=geometry.bias)
        return ("reduce", reduce), ("depthwise", geometry.over(inner, bias=False)), ("expand", expand)

    def energies(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """Energy of every term, largest first, summed over the groups: (full rank,) float64."""
        kernels = weight.detach().double().flatten(2).unflatten(0, (geometry.groups, -1))
        return torch.stack([_energies(principal_terms(kernel)) for kernel in kernels]).sum(0)

    def factored(self, geometry: Geometry, weight: Tensor, known: Known | None = None) -> list[Parts]:
        """The largest terms."""
        kernels = weight.detach().double().flatten(2).unflatten(0, (geometry.groups, -1))
        return [_largest(principal_terms(kernel), self._rank) for kernel in kernels]

    def scheme(self, geometry: Geometry) -> CPFit:
        """Variable projection."""
        return CPFit(self._rank)

    def kernels(self, geometry: Geometry, groups: Sequence[Parts]) -> list[tuple[Tensor, ...]]:
        """Reduce (R, C/groups, 1, 1), depthwise (R, 1, kh, kw), expand (O, R/groups, 1, 1), evened out."""
        even = [evened(*parts) for parts in groups]
        reduce, window, expand = (torch.cat(part) for part in zip(*even, strict=True))
        depthwise = window.unflatten(1, (1, *geometry.kernel_size))
        return [(reduce[..., None, None], depthwise, expand[..., None, None])]


def principal_terms(kernel: Tensor) -> Parts:
    """All terms of a kernel (O, C, K): reduce (T, C), window (T, K), expand (O, T), orthogonal to each other."""
    outputs, inputs, taps = kernel.shape
    if inputs * min(taps, outputs) > outputs * min(taps, inputs):
        expand, window, reduce = principal_terms(kernel.transpose(0, 1))
        return reduce.T, window, expand.T
    rows = kernel.transpose(0, 1).flatten(1)
    directions = eigen(rows @ rows.T)[1]
    turned = torch.einsum("ock,ce->eok", kernel, directions)
    factors = svd.truncate(turned, min(outputs, taps))
    count = factors.right.shape[1]
    return (
        directions.T.repeat_interleave(count, 0),
        factors.right.flatten(0, 1),
        factors.left.transpose(0, 1).flatten(1),
    )


def _energies(terms: Parts) -> Tensor:
    """Squared norms (T,), largest first."""
    ordered: Tensor = _sizes(terms).square().sort(descending=True).values
    return ordered


def _sizes(terms: Parts) -> Tensor:
    """Norms (T,)."""
    reduce, window, expand = terms
    sizes: Tensor = reduce.norm(dim=1) * window.norm(dim=1) * expand.norm(dim=0)
    return sizes


def _largest(terms: Parts, rank: int) -> Parts:
    """The `rank` largest terms."""
    reduce, window, expand = terms
    kept = _sizes(terms).argsort(descending=True, stable=True)[:rank]
    return reduce[kept], window[kept], expand[:, kept]


def evened(reduce: Tensor, window: Tensor, expand: Tensor) -> Parts:
    """The same terms with factors of equal norms: only their product counts."""
    norms = torch.stack([reduce.norm(dim=1), window.norm(dim=1), expand.norm(dim=0)])
    size = norms.prod(0).pow(1 / 3)
    scales = torch.where((norms > 0) & (size > 0), size / norms.clamp(min=1e-30), 1.0)
    return reduce * scales[0][:, None], window * scales[1][:, None], expand * scales[2]


@dataclass(frozen=True)
class CPFit:
    """Reduce (R, C), window (R, K), expand (O, R)."""

    rank: int

    def start(self, normal: Normal, dense: Tensor) -> Parts:
        """The largest principal terms of the kernel between roots of the metrics, then the regression on them."""
        across, inverse_across = roots(normal.covariance.diagonal(dim1=1, dim2=3).mean(-1))
        along, inverse_along = roots(normal.covariance.diagonal(dim1=0, dim2=2).mean(-1))
        weighed = torch.einsum("po,ock,cd,kl->pdl", roots(normal.metric)[0], dense, across, along)
        reduce, window, _ = _largest(principal_terms(weighed.double()), self.rank)
        reduce, window = reduce.to(dense) @ inverse_across, window.to(dense) @ inverse_along
        return _Problem(normal, dense, self.rank).at(flat((_unit(reduce), _unit(window)))).parts

    def kernel(self, factors: Parts) -> Tensor:
        """(O, C, K)."""
        return torch.einsum("rc,rk,or->ock", *factors)

    def sweep(self, normal: Normal, factors: Parts) -> Parts:
        """Steps of L-BFGS, if they help: they lower the error and the price of the terms' sizes together."""
        problem = _Problem(normal, normal.regress(), self.rank)
        reduce, window, expand = factors
        sizes = reduce.norm(dim=1) * window.norm(dim=1)
        start = problem.at(flat((_unit(reduce), _unit(window))))
        moved = descended(problem.at, problem.hessian, start, problem.steps)
        before, after = start.cost(expand * sizes, normal.metric), moved.cost(moved.parts[2], normal.metric)
        return moved.parts if after < before else factors


@dataclass(frozen=True)
class _Point:
    """A place in the search: the factors, what is minimised, its slope, and what the terms couple, `B^T M B`.

    `gram` is `V S V^T` and `wanted` is `M R V^T`, of the problem's cross moments `R`.
    """

    place: Tensor
    parts: Parts
    value: float
    gradient: Tensor
    coupling: Tensor
    gram: Tensor
    wanted: Tensor

    def cost(self, expand: Tensor, metric: Tensor) -> float:
        """`Normal.cost` of these rows with an expand, from what is at hand: no product as wide as the covariance."""
        return float((expand.T @ (metric @ expand) * self.gram).sum() - 2 * (expand * self.wanted).sum())


@dataclass(frozen=True)
class _Problem:
    """Variable projection of a least-squares problem onto reduce and window; `dense` is its regression."""

    normal: Normal
    dense: Tensor
    rank: int

    @property
    def steps(self) -> int:
        """How many are worth their price."""
        worth = min(STEPS, SWEEP_MACS / (self.rank * self.dense[0].numel() ** 2))
        return int(max(_LEAST_STEPS, self.normal.effort * worth))

    @cached_property
    def channels(self) -> Tensor:
        """The covariance of channels (C, C), averaged over taps."""
        found: Tensor = self.normal.covariance.diagonal(dim1=1, dim2=3).mean(-1)
        return found

    @cached_property
    def taps(self) -> Tensor:
        """The covariance of taps (K, K), averaged over channels."""
        found: Tensor = self.normal.covariance.diagonal(dim1=0, dim2=2).mean(-1)
        return found

    def at(self, place: Tensor) -> _Point:
        """The best expand for a reduce and a window, and what changing them would do."""
        reduce, window = self._split(place)
        rows, metric, cross = _rows(reduce, window), self.normal.metric, self.normal.cross.flatten(1)
        pulled = rows @ self.normal.square
        gram = pulled @ rows.T
        sizes = gram.diagonal()
        read = cross @ rows.T
        expand = torch.cholesky_solve(read.T, cholesky(gram + torch.diag(BOUND * sizes))).T
        wrong = metric @ (expand @ pulled - cross)
        coupling = expand.T @ (metric @ expand)
        price = BOUND * coupling.diagonal()
        value = ((expand @ rows - self.dense.flatten(1)) * wrong).sum() + (price * sizes).sum()
        slope = (expand.T @ wrong + price[:, None] * pulled).unflatten(1, (reduce.shape[1], -1))
        by_reduce, by_window = (slope @ window[:, :, None])[..., 0], (reduce[:, None] @ slope)[:, 0]
        slope_of = flat((by_reduce, by_window))
        return _Point(place, (reduce, window, expand), float(value), slope_of, coupling, gram, metric @ read)

    def hessian(self, point: _Point) -> Solver:
        """Solves with what reduce and window couple, each by itself, as if channels and taps were independent."""
        reduce, window, _ = point.parts
        by_taps = point.coupling * (window @ self.taps @ window.T) / self.taps.diagonal().mean()
        by_channels = point.coupling * (reduce @ self.channels @ reduce.T) / self.channels.diagonal().mean()
        for_reduce = KroneckerSolver(cholesky(by_taps), cholesky(self.channels))
        for_window = KroneckerSolver(cholesky(by_channels), cholesky(self.taps))

        def solve(vector: Tensor) -> Tensor:
            own, other = self._split(vector)
            return flat((for_reduce(own), for_window(other)))

        return solve

    def _split(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Reduce (R, C) and window (R, K)."""
        size = self.rank * self.dense.shape[1]
        return vector[:size].unflatten(0, (self.rank, -1)), vector[size:].unflatten(0, (self.rank, -1))


def _rows(reduce: Tensor, window: Tensor) -> Tensor:
    """(R, C*K): what each inner channel reads of a patch."""
    return (reduce[:, :, None] * window[:, None, :]).flatten(1)


def _unit(values: Tensor) -> Tensor:
    """Rows of norm one; the last factor holds the sizes."""
    scaled: Tensor = values / values.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return scaled
