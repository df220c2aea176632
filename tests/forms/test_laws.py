"""The laws of the forms, each for every form that ships and for one that the package does not know."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convsurgeon import CP, BlueprintSubspace, Energy, Geometry, Share
from convsurgeon.forms import blueprint, leastsquares
from convsurgeon.forms.catalogue import FORMS, form_from_dict
from convsurgeon.forms.form import Form
from convsurgeon.forms.leastsquares import Normal, Scheme, alternate
from convsurgeon.forms.lowrank import _cost
from tests.forms.own import Reduced
from tests.forms.problems import problem
from tests.layers import convs

KINDS = (*FORMS, Reduced)
Case = tuple[nn.Conv2d, Tensor, type[Form]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A kind of form, a conv that may take it, and an input."""
    kind = draw(st.sampled_from(KINDS))
    pointwise = kind().check(Geometry.of(nn.Conv2d(4, 4, 1))) is None
    conv, x = draw(convs(st.just((1, 1))) if pointwise else convs())
    assume(kind().check(Geometry.of(conv)) is None)
    return conv, x, kind


def _built(form: Form, conv: nn.Conv2d) -> nn.Module:
    geometry = Geometry.of(conv)
    module = form.build(geometry, conv.weight.device, conv.weight.dtype)
    form.fill(module, geometry, conv.weight, conv.bias)
    return module


def _full(kind: type[Form], geometry: Geometry) -> Form:
    extra: dict[str, Any] = {"width": 1.0} if _has(kind, "width") else {}
    return kind(rank=kind().full_rank(geometry), **extra)


def _has(kind: type[Form], name: str) -> bool:
    return name in {item.name for item in dataclasses.fields(kind)}


def _plain(conv: nn.Conv2d) -> nn.Conv2d:
    """A conv of the same channels and window, without stride, padding and bias."""
    return nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, groups=conv.groups, bias=False, dtype=torch.float64
    )


def _impulses(module: nn.Module, geometry: Geometry) -> Tensor:
    """The dense kernel that a module without bias computes, read off its response to impulses."""
    plain = dataclasses.replace(
        geometry, stride=(1, 1), dilation=(1, 1), padding=(0, 0), padding_mode="zeros", bias=False
    )
    kh, kw = plain.kernel_size
    eye = torch.zeros(geometry.in_channels, geometry.in_channels, 2 * kh - 1, 2 * kw - 1, dtype=torch.float64)
    eye[range(geometry.in_channels), range(geometry.in_channels), kh - 1, kw - 1] = 1
    response = module(eye).flip(2, 3).transpose(0, 1)
    size = geometry.in_per_group
    blocks = response.unflatten(0, (geometry.groups, -1)).unflatten(2, (geometry.groups, size))
    return torch.cat([blocks[g, :, g] for g in range(geometry.groups)])


@settings(max_examples=300)
@given(cases())
def test_law_1_full_rank_reproduces_the_layer(case: Case) -> None:
    conv, x, kind = case
    form = _full(kind, Geometry.of(conv))
    with torch.no_grad():
        expected = conv(x)
        difference = (_built(form, conv)(x) - expected).abs().max()
    assert difference <= 1e-10 * max(1.0, float(expected.abs().max()))


@settings(max_examples=150)
@given(cases(), st.data())
def test_law_2_lost_is_the_share_of_the_kernel_that_is_gone(case: Case, data: st.DataObject) -> None:
    conv, _, kind = case
    plain = _plain(conv)
    geometry = Geometry.of(plain)
    full = _full(kind, geometry)
    rank = data.draw(st.integers(1, full.settled_rank))
    form = dataclasses.replace(full, rank=rank)
    if _has(kind, "width"):
        form = dataclasses.replace(form, width=data.draw(st.sampled_from((0.2, 0.5, 1.0))))
    with torch.no_grad():
        gone = (_impulses(_built(form, plain), geometry) - plain.weight).square().sum() / plain.weight.square().sum()
    lost = form.lost(geometry, plain.weight)
    assert lost == pytest.approx(float(gone), abs=1e-9)
    if rank > 1:
        assert lost <= dataclasses.replace(form, rank=rank - 1).lost(geometry, plain.weight) + 1e-12


@settings(max_examples=200)
@given(cases(), st.data())
def test_law_5_predicted_costs_are_the_counted_ones(case: Case, data: st.DataObject) -> None:
    conv, x, kind = case
    geometry = Geometry.of(conv)
    norm = data.draw(st.sampled_from((None, "batch")))
    rank = data.draw(st.integers(1, _full(kind, geometry).settled_rank))
    form = kind(rank=rank, init="random", norm=norm)
    module = form.build(geometry, conv.weight.device, conv.weight.dtype).eval()
    assert form.params(geometry) == sum(parameter.numel() for parameter in module.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = module(x)
    assert 2 * x.shape[0] * form.macs(geometry, x.shape[2:]) == counter.get_total_flops()
    assert geometry.output_size(x.shape[2:]) == out.shape[2:] == conv(x).shape[2:]


@pytest.mark.parametrize("kind", KINDS)
def test_the_bias_sits_once_on_the_last_conv(kind: type[Form]) -> None:
    conv = nn.Conv2d(8, 12, 3)
    form = kind(rank=2)
    convs_ = [module for module in _built(form, conv).modules() if isinstance(module, nn.Conv2d)]
    stages = len(convs_) // form.branches
    others = [False] * (len(convs_) - stages)
    assert [module.bias is not None for module in convs_] == [False] * (stages - 1) + [True] + others
    assert torch.equal(convs_[stages - 1].bias, conv.bias)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_share_is_kept_and_used(kind: type[Form], share: float) -> None:
    conv = nn.Conv2d(32, 48, 3, padding=1, stride=2)
    geometry = Geometry.of(conv)
    form = kind(rank=Share(share)).settle(geometry, conv.weight)
    macs = form.macs(geometry, (64, 64)) / geometry.macs((64, 64))
    more = dataclasses.replace(form, rank=form.settled_rank + 8).macs(geometry, (64, 64)) / geometry.macs((64, 64))
    assert macs <= share * 1.01 or form.rank == 1
    assert more > share * 0.99
    assert form.settled_rank < 16 or form.settled_rank % 8 == 0
    assert form_from_dict(kind(rank=Share(share)).to_dict(), KINDS) == kind(rank=Share(share))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [3, Energy(0.75)])
def test_forms_survive_json(kind: type[Form], rank: int | Energy) -> None:
    form = kind(rank=rank)
    assert form_from_dict(form.to_dict(), KINDS) == form


FITS: dict[str, Form] = {kind.word: kind(rank=2) for kind in KINDS} | {
    "subspace": BlueprintSubspace(rank=2, width=0.6),
}
"""One of every kind, at a rank at which it cannot be exact."""

SEARCHED = [word for word in FITS if word not in ("subspace", "lowrank")]
"""Those whose sweeps search for the optimum; `lowrank` begins there, `subspace` is cut after each."""


def _fit(word: str) -> tuple[Scheme, Normal, Tensor, Tensor]:
    """A scheme and a problem for it."""
    taps = 9 if FITS[word].check(Geometry.of(nn.Conv2d(5, 6, 3))) is None else 1
    return FITS[word].scheme(Geometry.of(nn.Conv2d(5, 6, int(taps**0.5)))), *problem(taps=taps)


@pytest.fixture(params=[False, True], ids=["direct", "iterated"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems factored, or all of them iterated on."""
    if request.param:
        monkeypatch.setattr(leastsquares, "DIRECT_UNKNOWNS", 0)
        monkeypatch.setattr(blueprint, "DIRECT_MIXINGS", 0)


def _costs(scheme: Scheme, normal: Normal, sweeps: int) -> list[float]:
    """What the fit minimises, from the start on."""
    factors = scheme.start(normal, normal.regress())
    costs = [normal.cost(scheme.kernel(factors))]
    for _ in range(sweeps):
        factors = scheme.sweep(normal, factors)
        costs.append(normal.cost(scheme.kernel(factors)))
    return costs


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("word", FITS)
def test_law_10_no_sweep_makes_a_fit_worse(word: str) -> None:
    scheme, normal, _, y = _fit(word)
    constant = float((y @ normal.metric * y).sum() / len(y))
    costs = [cost + constant for cost in _costs(scheme, normal, 6)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(costs))
    assert costs[-1] < costs[0] or word == "lowrank"


@pytest.mark.parametrize("word", SEARCHED)
def test_a_metric_lowers_the_error_that_it_measures(word: str) -> None:
    scheme, normal, _, _ = _fit(word)
    blind = dataclasses.replace(normal, metric=torch.eye(6, dtype=torch.float64))
    costs = []
    for one in (normal, blind):
        factors = alternate(scheme, one, scheme.start(one, one.regress()), 8)
        costs.append(normal.cost(scheme.kernel(factors)))
    assert costs[0] < costs[1]


@pytest.mark.parametrize("word", SEARCHED)
def test_a_kernel_of_the_form_is_found_again(word: str) -> None:
    scheme, normal, x, _ = _fit(word)
    truth = scheme.kernel(scheme.start(normal, torch.randn(6, 5, 9, dtype=torch.float64)))
    exact = dataclasses.replace(normal, cross=(truth.flatten(1) @ normal.spread.values).reshape(6, 5, 9))
    found = scheme.kernel(alternate(scheme, exact, scheme.start(exact, exact.regress()), 3)).flatten(1)
    torch.testing.assert_close(x @ found.T, x @ truth.flatten(1).T, rtol=1e-4, atol=1e-2)


@settings(max_examples=150)
@given(cases(), st.data())
def test_what_is_fitted_is_what_is_built(case: Case, data: st.DataObject) -> None:
    """Factors -> kernels -> modules -> dense kernel, group by group, is what the scheme says its factors compute."""
    conv, kind = _plain(case[0]), case[2]
    geometry = Geometry.of(conv)
    form = kind(rank=data.draw(st.integers(1, _full(kind, geometry).settled_rank)))
    with torch.no_grad():
        module = _built(form, conv)
        read = form.dense(module, geometry)
        torch.testing.assert_close(_impulses(module, geometry), read)
        if not _has(kind, "width"):  # which narrows the factors when kernels are made of them
            parts = [form.scheme(geometry).kernel(own) for own in form.factored(geometry, conv.weight)]
            torch.testing.assert_close(read, torch.cat(parts).reshape(conv.weight.shape))


def test_a_low_rank_fit_begins_at_its_optimum() -> None:
    scheme, normal, _, _ = _fit("lowrank")
    best = normal.cost(scheme.kernel(scheme.start(normal, normal.regress())))
    others = torch.randn(500, 2, 5, dtype=torch.float64), torch.randn(500, 6, 2, dtype=torch.float64)
    assert best < min(normal.cost(scheme.kernel(pair)) for pair in zip(*others, strict=True))
    (reduce, expand), (values, _) = scheme.start(normal, normal.regress()), torch.linalg.eigh(normal.metric)
    assert values.min() > 0
    for factor in (reduce, expand):  # and no small step leads down from it
        for _ in range(50):
            step = 1e-4 * torch.randn_like(factor)
            pair = (reduce + step, expand) if factor is reduce else (reduce, expand + step)
            assert normal.cost(scheme.kernel(pair)) >= best - 1e-9 * abs(best)


def test_a_low_rank_sweep_finds_the_optimum_from_elsewhere_and_stays_there() -> None:
    scheme, normal, _, _ = _fit("lowrank")
    best = scheme.start(normal, normal.regress())
    assert all(one is two for one, two in zip(scheme.sweep(normal, best), best, strict=True))
    elsewhere = tuple(factor + torch.randn_like(factor) for factor in best)
    for one, two in zip(scheme.sweep(normal, elsewhere), best, strict=True):
        torch.testing.assert_close(one, two)
    nearer = tuple(1.0 * factor for factor in best)
    assert _cost(normal, nearer) == pytest.approx(normal.cost(scheme.kernel(nearer)))


@pytest.mark.parametrize("rank", [4, 9, 16])
def test_cp_fits_keep_their_terms_bounded(rank: int) -> None:
    """Terms that grow and cancel are what a CP decomposition is known for; their price keeps them near the product."""
    normal, _, _ = problem(outputs=8, channels=8)
    scheme = CP(rank=rank).scheme(Geometry.of(nn.Conv2d(8, 8, 3)))
    reduce, window, expand = alternate(scheme, normal, scheme.start(normal, normal.regress()), 6)
    terms = (reduce.norm(dim=1) * window.norm(dim=1) * expand.norm(dim=0)).square().sum()
    assert terms < 100 * scheme.kernel((reduce, window, expand)).square().sum()


def test_a_cp_sweep_of_a_cp_kernel_finds_it_again() -> None:
    normal, _, _ = problem(outputs=8, channels=8)
    scheme = CP(rank=6).scheme(Geometry.of(nn.Conv2d(8, 8, 3)))
    truth = torch.einsum("rc,rk,or->ock", *(torch.randn(shape).double() for shape in ((6, 8), (6, 9), (8, 6))))
    exact = dataclasses.replace(normal, cross=(truth.flatten(1) @ normal.spread.values).reshape(truth.shape))
    found = scheme.kernel(alternate(scheme, exact, scheme.start(exact, exact.regress()), 8))
    whole = -exact.cost(truth)
    assert exact.cost(found) + whole < 1e-3 * whole
