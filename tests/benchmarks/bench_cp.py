"""CP on every dense conv of the real networks, at the MACs of separable rank 1, 2 and 3.

python tests/benchmarks/bench_cp.py [resnet20 resnet56 dncnn vdsr] [--seed 0] [--every 1]

Error is that of the layer's outputs in the metric of the fit, on the second moments of what the original feeds it,
after the sweeps that a calibrated conversion takes. `longer` is the error after ten times the sweeps, over that;
`terms` the sum of the terms' squared norms over the product's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from convsurgeon.forms.branched import Branched

import convsurgeon as cs
from convsurgeon.calibration.dataset import read
from convsurgeon.fit import sensitivity
from convsurgeon.fit.site import SWEEPS
from convsurgeon.forms.leastsquares import Normal, alternate
from convsurgeon.search import scores as rating
from tests.benchmarks.bench_calibrated import CASES
from tests.networks import pretrained

SHAPES = {"resnet20": (1, 3, 32, 32), "resnet56": (1, 3, 32, 32), "dncnn": (1, 1, 64, 64), "vdsr": (1, 1, 64, 64)}


@dataclass(frozen=True)
class Row:
    """One layer at the MACs of separable of one rank; errors relative to the layer's energy."""

    strided: bool
    rank: int
    separable: float
    blueprint: float
    cp: float
    longer: float
    terms: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="take every n-th layer only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = []
    for name in options.networks:
        rows = list(_rows(name, options.seed, options.every))
        for strided in (False, True):
            for rank in (1, 2, 3):
                some = [row for row in rows if (row.strided, row.rank) == (strided, rank)]
                if some:
                    table.append((name, "2" if strided else "1", rank, len(some), *_summary(some)))
    heads = ("network", "stride", "separable", "n", "below separable", "below blueprint", "median CP/separable")
    more = ("CP/blueprint", "longer/CP: median", "least", "terms: median", "most", "s a layer")
    print(tabulate(table, (*heads, *more), floatfmt=".3g"))


def _summary(rows: list[Row]) -> tuple[object, ...]:
    median = statistics.median
    return (
        sum(row.cp < row.separable for row in rows),
        sum(row.cp < row.blueprint for row in rows),
        median(row.cp / row.separable for row in rows),
        median(row.cp / row.blueprint for row in rows),
        median(row.longer / row.cp for row in rows),
        min(row.longer / row.cp for row in rows),
        median(row.terms for row in rows),
        max(row.terms for row in rows),
        median(row.seconds for row in rows),
    )


def _rows(name: str, seed: int, every: int) -> Iterator[Row]:
    model = pretrained(name)
    seen = cs.capture(model, torch.zeros(SHAPES[name]))
    data = read(CASES[name].images(seed), seen.example, 1024)
    policy = cs.min_channels(16) & ~cs.kernel_size(1)
    names = [site.name for site in seen.sites if policy(site)]
    gradients = sensitivity.moments(model, names, data.fitted, seed)
    moments = rating._second_moments(model, names, data.fitted, seed)
    for layer in tqdm(names[::every], desc=name, leave=False):
        conv = model.get_submodule(layer)
        assert isinstance(conv, nn.Conv2d)
        (normal,) = rating._Site(conv, moments[layer], gradients[layer]).normals
        normal = replace(normal, effort=1.0)
        geometry = cs.Geometry.of(conv)
        for rank in (1, 2, 3):
            yield _row(normal, geometry, rank)


def _row(normal: Normal, geometry: cs.Geometry, rank: int) -> Row:
    separable = cs.DepthwiseSeparable(rank=rank)
    size = (64, 64)
    limit = separable.macs(geometry, size)
    width = next(r for r in range(cs.CP().full_rank(geometry), 0, -1) if cs.CP(rank=r).macs(geometry, size) <= limit)
    branches = max(r for r in range(1, 10) if r == 1 or cs.Blueprint(rank=r).macs(geometry, size) <= limit)
    form = cs.CP(rank=width)
    start = time.perf_counter()
    scheme = form.scheme(geometry)
    factors = alternate(scheme, normal, scheme.start(normal, normal.regress()), SWEEPS)
    seconds = time.perf_counter() - start
    longer = alternate(scheme, normal, factors, 9 * SWEEPS)
    reduce, window, expand = factors
    kernel = scheme.kernel(factors)
    terms = (reduce.norm(dim=1) * window.norm(dim=1) * expand.norm(dim=0)).square().sum() / kernel.square().sum()
    errors = (_error(normal, geometry, one) for one in (separable, cs.Blueprint(rank=branches)))
    return Row(
        geometry.stride != (1, 1), rank, *errors, _relative(normal, kernel),
        _relative(normal, scheme.kernel(longer)), float(terms), seconds,
    )  # fmt: skip


def _error(normal: Normal, geometry: cs.Geometry, form: Branched) -> float:
    scheme = form.scheme(geometry)
    return _relative(normal, scheme.kernel(alternate(scheme, normal, scheme.start(normal, normal.regress()), SWEEPS)))


def _relative(normal: Normal, kernel: torch.Tensor) -> float:
    whole = -normal.cost(normal.regress())
    return (normal.cost(kernel) + whole) / whole


if __name__ == "__main__":
    main()
