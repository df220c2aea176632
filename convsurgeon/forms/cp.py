r"""CP: a pointwise conv to R channels, a depthwise window on those, a pointwise conv to the outputs. One branch.

The canonical polyadic decomposition with all taps in one mode,

    W[o, c, k] = sum_r expand[o, r] * window[r, k] * reduce[r, c]          y = expand(depthwise(reduce(x)))

Lebedev et al. 2015 (arXiv 1412.6553) split the window too, Phan et al. 2020 (arXiv 2008.05441) keep it whole. No bias
stands before the last conv, so it is exact under every padding. With groups everything holds group by group, the rank
too. How its factors are found is in `cpfit.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from convsurgeon.forms.cpfit import CPFit, largest_terms, principal_terms, sizes
from convsurgeon.forms.form import Form, Stages
from convsurgeon.forms.geometry import Geometry
from convsurgeon.forms.leastsquares import Parts


@dataclass(frozen=True)
class CP(Form):
    """Pointwise to `rank` channels per group, a depthwise window on them, pointwise to the outputs.

    Lebedev et al. 2015; Phan et al. 2020. Widths that rules choose are multiples of 16, and of 8 below that.
    """

    name: ClassVar[str] = "cp"
    word: ClassVar[str] = "cp"
    width_steps: ClassVar[tuple[int, int]] = (16, 8)
    summed: ClassVar[bool] = False

    def full_rank(self, geometry: Geometry) -> int:
        """Return the number of terms: principal inputs (or outputs) times the windows that each can have."""
        inputs, outputs, taps = geometry.in_per_group, geometry.out_per_group, geometry.taps
        return min(inputs * min(taps, outputs), outputs * min(taps, inputs))

    def stages(self, geometry: Geometry) -> Stages:
        """Return reduce, the window, expand."""
        inner = self.settled_rank * geometry.groups
        reduce = geometry.pointwise(geometry.in_channels, inner, bias=False)
        expand = geometry.pointwise(inner, geometry.out_channels, bias=geometry.bias)
        return ("reduce", reduce), ("depthwise", geometry.over(inner, bias=False)), ("expand", expand)

    def energies(self, geometry: Geometry, weight: Tensor) -> Tensor:
        """Return the energy of every term, largest first, summed over the groups: (full rank,) float64."""
        kernels = weight.detach().double().flatten(2).unflatten(0, (geometry.groups, -1))
        terms = [sizes(principal_terms(kernel)).square().sort(descending=True).values for kernel in kernels]
        return torch.stack(terms).sum(0)

    def factored(self, geometry: Geometry, weight: Tensor) -> list[Parts]:
        """Return the largest terms."""
        kernels = weight.detach().double().flatten(2).unflatten(0, (geometry.groups, -1))
        return [largest_terms(principal_terms(kernel), self.settled_rank) for kernel in kernels]

    def scheme(self, geometry: Geometry) -> CPFit:
        """Return variable projection."""
        return CPFit(self.settled_rank)

    def kernels(self, geometry: Geometry, groups: Sequence[Parts]) -> list[tuple[Tensor, ...]]:
        """Return reduce (R, C/groups, 1, 1), depthwise (R, 1, kh, kw), expand (O, R/groups, 1, 1), of equal norms."""
        even = [even_norms(*parts) for parts in groups]
        reduce, window, expand = (torch.cat(part) for part in zip(*even, strict=True))
        depthwise = window.unflatten(1, (1, *geometry.kernel_size))
        return [(reduce[..., None, None], depthwise, expand[..., None, None])]


def even_norms(reduce: Tensor, window: Tensor, expand: Tensor) -> Parts:
    """Return the same terms with factors of equal norms: only their product counts."""
    norms = torch.stack([reduce.norm(dim=1), window.norm(dim=1), expand.norm(dim=0)])
    size = norms.prod(0).pow(1 / 3)
    scales = torch.where((norms > 0) & (size > 0), size / norms.clamp(min=1e-30), 1.0)
    return reduce * scales[0][:, None], window * scales[1][:, None], expand * scales[2]
