r"""How the factors of a CP form are found. Tensors only.

**From the weights alone** the inputs (or the outputs, if that gives fewer terms) are turned into their principal
directions, and the windows of each direction come from its SVD; of all these terms the largest are kept. They are
orthogonal, so the error is the energy of the others, exact once none is left.

**The fit** is variable projection (Golub & Pereyra 1973): for given rows `V[r] = reduce[r] x window[r]` the best
`expand` is a regression, so only reduce and window are searched, by L-BFGS on

    f(V) = min over B of  tr(M (B V - W) S (B V - W)^T) + mu * sum_r (B^T M B)[r, r] (V S V^T)[r, r]

with the metric `M` of the outputs, the covariance `S` of the patches and the dense kernel `W` of the regression. The
last term keeps the terms small: terms that grow and cancel hurt int8 and training (Phan et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from convsurgeon.forms import svd
from convsurgeon.forms.covariance import Whole
from convsurgeon.forms.lbfgs import Iterate, Solver, flat, minimise
from convsurgeon.forms.leastsquares import Normal, Parts
from convsurgeon.forms.systems import cholesky, eigen, inverse, roots

BOUND = 1e-4
"""`mu`, the price of a term's size."""

STEPS = 60
"""Steps of L-BFGS in a sweep."""

SWEEP_MACS = 4e10
"""What a sweep may cost: layers of 256 channels and more take fewer steps."""

_LEAST_STEPS, _LEAST_OF_WIDEST = 6, 3
"""The second where one step alone costs more than a sweep may, and where half the effort is enough."""

_BETWEEN_STEPS = 20

SEARCHED_IN_SINGLE = 256
"""Values of a patch from which on L-BFGS takes its steps in float32; errors are compared in the problem's precision."""


def principal_terms(kernel: Tensor) -> Parts:
    """Return all terms of a kernel (O, C, K): reduce (T, C), window (T, K), expand (O, T), orthogonal to each other."""
    outputs, inputs, taps = kernel.shape
    if inputs * min(taps, outputs) > outputs * min(taps, inputs):
        expand, window, reduce = principal_terms(kernel.transpose(0, 1))
        return reduce.T, window, expand.T
    rows = kernel.transpose(0, 1).flatten(1)
    directions = eigen(rows @ rows.T)[1]
    turned = torch.einsum("ock,ce->eok", kernel, directions)
    left, right = svd.truncate(turned, min(outputs, taps))
    return directions.T.repeat_interleave(right.shape[1], 0), right.flatten(0, 1), left.transpose(0, 1).flatten(1)


def sizes(terms: Parts) -> Tensor:
    """Return norms (T,)."""
    reduce, window, expand = terms
    sizes: Tensor = reduce.norm(dim=1) * window.norm(dim=1) * expand.norm(dim=0)
    return sizes


def largest_terms(terms: Parts, rank: int) -> Parts:
    """Return the `rank` largest terms."""
    reduce, window, expand = terms
    kept = sizes(terms).argsort(descending=True, stable=True)[:rank]
    return reduce[kept], window[kept], expand[:, kept]


@dataclass(frozen=True)
class CPFit:
    """Reduce (R, C), window (R, K), expand (O, R)."""

    rank: int

    def start(self, normal: Normal, dense: Tensor) -> Parts:
        """Return the largest principal terms of the kernel between roots of the metrics, and the best `expand`.

        Where the problem itself can afford few steps, a cheaper search between the roots comes first.
        """
        between, problem = _Between.of(normal, dense), _Problem(normal, dense, self.rank)
        reduce, window, _ = largest_terms(between.terms, self.rank)
        if problem.scarce:
            begun = between.at(flat((_unit(reduce), _unit(window))))
            return between.outside(minimise(between.at, between.hessian, begun, between.steps(self.rank)).parts)
        reduce, window, _ = between.outside((reduce, window, reduce.new_zeros(len(dense), self.rank)))
        return problem.at(flat((_unit(reduce), _unit(window)))).parts

    def kernel(self, factors: Parts) -> Tensor:
        """Return the dense kernel (O, C, K)."""
        return torch.einsum("rc,rk,or->ock", *factors)

    def sweep(self, normal: Normal, factors: Parts) -> Parts:
        """Take steps of L-BFGS, and keep them if they lower the error itself."""
        problem = _Problem(normal, normal.regress(), self.rank)
        reduce, window, expand = factors
        sizes = reduce.norm(dim=1) * window.norm(dim=1)
        start = problem.at(flat((_unit(reduce), _unit(window))))
        single = problem.in_single_precision()
        begun = start if single is problem else single.at(start.place.to(single.dense))
        moved = minimise(single.at, single.hessian, begun, problem.steps)
        moved = moved if single is problem else problem.at(moved.place.to(start.place))
        before, after = start.cost(expand * sizes, normal.metric), moved.cost(moved.parts[2], normal.metric)
        return moved.parts if after < before else factors


@dataclass(frozen=True)
class _Point(Iterate):
    """A place in the search with its factors, and what the terms couple, `B^T M B`.

    `gram` is `V S V^T` and `wanted` is `M R V^T`, of the problem's cross moments `R`.
    """

    parts: Parts
    coupling: Tensor
    gram: Tensor
    wanted: Tensor

    def cost(self, expand: Tensor, metric: Tensor) -> float:
        """Return `Normal.cost` of these rows with an expand, without a product as wide as the covariance."""
        return float((expand.T @ (metric @ expand) * self.gram).sum() - 2 * (expand * self.wanted).sum())


@dataclass(frozen=True)
class _Problem:
    """Variable projection of a least-squares problem onto reduce and window; `dense` is its regression."""

    normal: Normal
    dense: Tensor
    rank: int

    @property
    def worth(self) -> float:
        """How many steps a sweep can afford."""
        return SWEEP_MACS / (self.rank * self.dense[0].numel() ** 2)

    @property
    def scarce(self) -> bool:
        """Whether that is fewer than a sweep takes."""
        return self.worth < STEPS

    @property
    def steps(self) -> int:
        wanted = max(_LEAST_STEPS, min(STEPS, self.worth)) if self.worth >= 1 else 0
        return int(max(_LEAST_OF_WIDEST, self.normal.effort * wanted))

    def in_single_precision(self) -> _Problem:
        """Return the problem as it is searched: in float32 where that is faster, which a place does not notice."""
        if self.dense.dtype == torch.float32 or self.dense[0].numel() < SEARCHED_IN_SINGLE:
            return self
        made: Normal | None = self.normal.shared.get("single")
        if made is None:
            given = self.normal.spread.values, self.normal.cross, self.normal.metric
            spread, cross, metric = (one.float() for one in given)
            made = self.normal.shared["single"] = Normal(Whole(spread), cross, metric, effort=self.normal.effort)
        return _Problem(made, self.dense.float(), self.rank)

    def at(self, place: Tensor) -> _Point:
        """Return the best expand for a reduce and a window, and the gradient."""
        reduce, window = _split(place, self.dense)
        rows, metric, cross = _rows(reduce, window), self.normal.metric, self.normal.cross.flatten(1)
        pulled = self.normal.spread.times(rows)
        gram = pulled @ rows.T
        sizes = gram.diagonal()
        read = cross @ rows.T
        expand = torch.cholesky_solve(read.T, cholesky(gram + torch.diag(BOUND * sizes))).T
        weighed = metric @ expand
        wrong = weighed @ pulled - self.normal.wanted.flatten(1)
        coupling = expand.T @ weighed
        price = BOUND * coupling.diagonal()
        value = ((expand @ rows - self.dense.flatten(1)) * wrong).sum() + (price * sizes).sum()
        slope = (expand.T @ wrong + price[:, None] * pulled).unflatten(1, (reduce.shape[1], -1))
        by_reduce, by_window = (slope @ window[:, :, None])[..., 0], (reduce[:, None] @ slope)[:, 0]
        slope_of = flat((by_reduce, by_window))
        return _Point(place, float(value), slope_of, (reduce, window, expand), coupling, gram, metric @ read)

    def hessian(self, point: _Point) -> Solver:
        """Return a solver for reduce and window, each by itself, as if channels and taps were independent."""
        reduce, window, _ = point.parts
        channels, taps = self.normal.channels, self.normal.taps
        by_taps = point.coupling * (window @ taps @ window.T) / taps.diagonal().mean()
        by_channels = point.coupling * (reduce @ channels @ reduce.T) / channels.diagonal().mean()
        if "inverses" not in self.normal.shared:
            self.normal.shared["inverses"] = inverse(channels), inverse(taps)
        of_channels, of_taps = self.normal.shared["inverses"]
        for_reduce = inverse(by_taps), of_channels
        for_window = inverse(by_channels), of_taps

        def solve(vector: Tensor) -> Tensor:
            own, other = _split(vector, self.dense)
            return flat((for_reduce[0] @ own @ for_reduce[1], for_window[0] @ other @ for_window[1]))

        return solve


@dataclass(frozen=True)
class _Between:
    """The kernel (O, C, K) between the roots of the metric and of the covariance's marginals over channels and taps.

    There every direction counts alike: it is the problem as it would be if channels and taps were independent. It does
    not hold the problem, which holds it: a circle of them would keep hundreds of megabytes until Python looks for it.
    """

    effort: float
    dense: Tensor
    kernel: Tensor
    inverses: Parts

    @staticmethod
    def of(normal: Normal, dense: Tensor) -> _Between:
        found = normal.shared.get("between")
        if found is None or found.dense is not dense:
            channels = roots(normal.channels)
            taps = roots(normal.taps)
            outputs = roots(normal.metric)
            kernel = torch.einsum("po,ock,cd,kl->pdl", outputs[0], dense, channels[0], taps[0])
            found = normal.shared["between"] = _Between(
                normal.effort, dense, kernel, (channels[1], taps[1], outputs[1])
            )
        return found

    @cached_property
    def terms(self) -> Parts:
        return tuple(part.to(self.kernel) for part in principal_terms(self.kernel.double()))

    def steps(self, rank: int) -> int:
        worth = SWEEP_MACS / (2 * rank * self.kernel.numel())
        return int(max(_LEAST_STEPS, self.effort * min(_BETWEEN_STEPS, worth)))

    def outside(self, parts: Parts) -> Parts:
        reduce, window, expand = parts
        channels, taps, outputs = self.inverses
        return reduce @ channels, window @ taps, outputs @ expand

    def at(self, place: Tensor) -> _Point:
        reduce, window = _split(place, self.kernel)
        by_taps, by_channels = window @ window.T, reduce @ reduce.T
        gram, read = by_taps * by_channels, self.kernel.flatten(1) @ _rows(reduce, window).T
        sizes = gram.diagonal()
        expand = torch.cholesky_solve(read.T, cholesky(gram + torch.diag(BOUND * sizes))).T
        coupling = expand.T @ expand
        priced = coupling + torch.diag(BOUND * coupling.diagonal())
        value = self.kernel.square().sum() - 2 * (expand * read).sum() + (priced * gram).sum()
        pulled = (expand.T @ self.kernel.flatten(1)).unflatten(1, self.kernel.shape[1:])
        by_reduce = (priced * by_taps) @ reduce - (pulled @ window[:, :, None])[..., 0]
        by_window = (priced * by_channels) @ window - (reduce[:, None] @ pulled)[:, 0]
        slope_of = flat((by_reduce, by_window))
        return _Point(place, float(value), slope_of, (reduce, window, expand), coupling, gram, read)

    def hessian(self, point: _Point) -> Solver:
        reduce, window, _ = point.parts
        for_reduce = inverse(point.coupling * (window @ window.T))
        for_window = inverse(point.coupling * (reduce @ reduce.T))

        def solve(vector: Tensor) -> Tensor:
            own, other = _split(vector, self.kernel)
            return flat((for_reduce @ own, for_window @ other))

        return solve


def _split(vector: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """Return reduce (R, C) and window (R, K) of a kernel (O, C, K)."""
    channels, taps = dense.shape[1:]
    rank = len(vector) // (channels + taps)
    return vector[: rank * channels].unflatten(0, (rank, -1)), vector[rank * channels :].unflatten(0, (rank, -1))


def _rows(reduce: Tensor, window: Tensor) -> Tensor:
    """Return what each inner channel reads of a patch (R, C*K)."""
    return (reduce[:, :, None] * window[:, None, :]).flatten(1)


def _unit(values: Tensor) -> Tensor:
    """Return rows of norm one; the last factor holds the sizes."""
    scaled: Tensor = values / values.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return scaled
