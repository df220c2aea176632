"""What single forms promise, and the figures of the literature; the laws of all stand in `test_laws`."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import nn

from convsurgeon import CP, Blueprint, BlueprintSubspace, DepthwiseSeparable, Energy, Geometry, LowRank, Share
from convsurgeon.base.errors import FormError
from convsurgeon.forms.catalogue import form_from_dict
from convsurgeon.forms.cp import even_norms
from convsurgeon.forms.form import Form


def _built(form: Form, conv: nn.Conv2d) -> nn.Module:
    geometry = Geometry.of(conv)
    module = form.build(geometry, conv.weight.device, conv.weight.dtype)
    form.fill(module, geometry, conv.weight, conv.bias)
    return module


def test_textbook_separable_16_to_32() -> None:
    geometry = Geometry.of(nn.Conv2d(16, 32, 3, padding=1, bias=False))
    form = DepthwiseSeparable(rank=1)
    assert (geometry.params, form.params(geometry)) == (4608, 656)
    assert (geometry.macs((128, 128)), form.macs(geometry, (128, 128))) == (75_497_472, 10_747_904)


def test_textbook_blueprint_10_to_32() -> None:
    geometry = Geometry.of(nn.Conv2d(10, 32, 3))
    assert (geometry.params, Blueprint(rank=1).params(geometry)) == (2912, 640)


def test_textbook_strided_5x5_stem() -> None:
    """Textbooks say 334: they keep a bias on the depthwise conv that the pointwise one's makes redundant."""
    geometry = Geometry.of(nn.Conv2d(3, 64, 5, stride=2))
    assert (geometry.params, DepthwiseSeparable(rank=1).params(geometry)) == (4864, 331)
    assert geometry.output_size((228, 228)) == (112, 112)


@pytest.mark.parametrize(("bs", "ic", "oc", "kh", "kw"), [(1, 16, 32, 3, 3), (8, 64, 128, 5, 3)])
def test_textbook_flops_per_batch(bs: int, ic: int, oc: int, kh: int, kw: int) -> None:
    geometry = Geometry.of(nn.Conv2d(ic, oc, (kh, kw)))
    oh, ow = geometry.output_size((32, 48))
    assert 2 * bs * geometry.macs((32, 48)) == 2 * bs * ic * oh * ow * kh * kw * oc
    assert 2 * bs * DepthwiseSeparable(rank=1).macs(geometry, (32, 48)) == 2 * bs * ic * oh * ow * (kh * kw + oc)


def test_textbook_pyramid_of_five_stages_keeps_an_eighth() -> None:
    """Halving the size and doubling the channels five times from 128x128."""
    form, params, macs = DepthwiseSeparable(rank=1), [], []
    for step in range(5):
        geometry = Geometry.of(nn.Conv2d(32 << step, 64 << step, 3, padding=1, bias=False))
        size = (128 >> step, 128 >> step)
        params.append(form.params(geometry) / geometry.params)
        macs.append(form.macs(geometry, size) / geometry.macs(size))
    assert 0.11 <= sum(params) / 5 <= 0.12
    assert 0.11 <= sum(macs) / 5 <= 0.12


def test_names_of_the_parts() -> None:
    names = [name for name, _ in _built(DepthwiseSeparable(rank=2), nn.Conv2d(8, 8, 3)).named_parameters()]
    assert names[:2] == ["branches.0.depthwise.weight", "branches.0.pointwise.weight"]
    subspace = _built(BlueprintSubspace(rank=1), nn.Conv2d(16, 8, 3))
    assert [name for name, _ in subspace.branches[0].named_children()] == ["subspace", "pointwise", "depthwise"]


@pytest.mark.parametrize(("share", "width"), [(0.25, 8), (0.3, 12), (1.0, 16), (0.01, 4)])
def test_subspace_widths_are_multiples_of_four(share: float, width: int) -> None:
    geometry = Geometry.of(nn.Conv2d(32, 16, 3))
    assert BlueprintSubspace(width=share).inner(geometry) == width


def test_energy_picks_the_smallest_rank_that_keeps_its_share() -> None:
    conv = nn.Conv2d(16, 32, 3, dtype=torch.float64)
    geometry = Geometry.of(conv)
    form = DepthwiseSeparable(rank=Energy(0.8)).settle(geometry, conv.weight)
    assert form.lost(geometry, conv.weight) <= 0.2
    assert dataclasses.replace(form, rank=form.rank - 1).lost(geometry, conv.weight) > 0.2
    assert DepthwiseSeparable(rank=Energy(1.0)).settle(geometry, conv.weight).rank == 9
    assert DepthwiseSeparable(rank=Energy(0.5)).settle(geometry, torch.zeros_like(conv.weight)).rank == 1


@pytest.mark.parametrize(
    ("geometry", "form", "reason"),
    [
        (nn.Conv2d(8, 8, 1), DepthwiseSeparable(), "1x1 kernel"),
        (nn.Conv2d(8, 16, 3, groups=8), DepthwiseSeparable(), "already depthwise"),
        (nn.Conv2d(8, 8, 3), LowRank(), "3x3 kernel: only a 1x1 conv"),
    ],
)
def test_check_gives_a_reason(geometry: nn.Conv2d, form: Form, reason: str) -> None:
    found = form.check(Geometry.of(geometry))
    assert found is not None
    assert re.search(reason, found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": 2.5}, "rank must be an int or a rule"),
        ({"rank": True}, "rank must be an int or a rule"),
        ({"init": "svd"}, "init must be one of 'factor', 'random', got 'svd'"),
        ({"norm": "layer"}, "norm must be one of None, 'batch'"),
        ({"activation": "swish", "init": "random"}, "activation must be one of"),
        ({"norm": "batch"}, "norm and activation change what the layer computes"),
        ({"activation": "relu"}, "norm and activation change what the layer computes"),
        ({"init": "random", "rank": Energy(0.9)}, "a rank rule reads the weights"),
    ],
)
def test_parameters_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(FormError, match=message):
        DepthwiseSeparable(**arguments)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, float("nan")])
def test_energy_share_must_be_a_share(share: float) -> None:
    with pytest.raises(FormError, match=r"the share must lie in \(0, 1\]"):
        Energy(share)


def test_subspace_width_must_be_a_share() -> None:
    with pytest.raises(FormError, match=r"width must lie in \(0, 1\], got 1.5"):
        BlueprintSubspace(width=1.5)


def test_random_init_has_norm_and_activation_between_the_convs() -> None:
    form = BlueprintSubspace(rank=2, init="random", norm="batch", activation="relu6")
    geometry = Geometry.of(nn.Conv2d(16, 24, 3, padding=1))
    module = form.build(geometry, torch.device("cpu"), torch.float32)
    kinds = [type(layer).__name__ for layer in module.branches[1]]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU6", "Conv2d", "BatchNorm2d", "ReLU6", "Conv2d"]
    module(torch.randn(2, 16, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"form": "fourier"}, "unknown form 'fourier'; known are cp, depthwise_separable"),
        ({"form": "blueprint", "depth": 3}, "blueprint: unknown field 'depth'"),
        ({"form": "blueprint", "rank": {"energy": 0.9, "more": 1}}, "a rank rule reads"),
        ({"form": "blueprint", "rank": "two"}, "rank must be an int"),
    ],
)
def test_damaged_forms_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(FormError, match=message):
        form_from_dict(values)


@pytest.mark.parametrize(
    ("conv", "form", "full", "reason"),
    [
        (nn.Conv2d(16, 16, 3), DepthwiseSeparable(rank=12), 9, r"rank 12 exceeds 9 \(3x3 kernel\); pass rank <= 9"),
        (nn.Conv2d(16, 4, 3), DepthwiseSeparable(rank=5), 4, r"rank 5 exceeds 4 \(4 is exact here\)"),
        (nn.Conv2d(4, 16, 3), Blueprint(rank=5), 4, r"rank 5 exceeds 4 \(4 is exact here\)"),
        (nn.Conv2d(16, 24, 3), CP(rank=1000), 144, "rank 1000 exceeds 144"),
        (nn.Conv2d(16, 24, 1), LowRank(rank=17), 16, "rank 17 exceeds 16"),
    ],
)
def test_a_rank_above_the_full_one_is_capped(conv: nn.Conv2d, form: Form, full: int, reason: str) -> None:
    geometry = Geometry.of(conv)
    settled = form.settle(geometry, conv.weight)
    assert settled.rank == full
    assert settled.exceeds(geometry) is None
    assert re.match(reason, form.exceeds(geometry) or "")


@pytest.mark.parametrize(
    ("channels", "share", "width"), [(16, 0.3, 16), (16, 0.5, 16), (32, 0.26, 32), (64, 0.3, 80), (16, 0.2, 8)]
)
def test_rules_choose_even_widths_for_cp(channels: int, share: float, width: int) -> None:
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    assert CP(rank=Share(share)).settle(Geometry.of(conv), conv.weight).rank == width
    kept = CP(rank=Energy(0.9)).settle(Geometry.of(conv), conv.weight)
    assert kept.rank % 16 == 0
    assert kept.lost(Geometry.of(conv), conv.weight) <= 0.1


def test_cp_terms_have_factors_of_equal_norms() -> None:
    conv = nn.Conv2d(12, 10, 3)
    reduce, window, expand = CP(rank=20).factored(Geometry.of(conv), conv.weight)[0]
    even = even_norms(7 * reduce, window / 3, expand)
    norms = torch.stack([even[0].norm(dim=1), even[1].norm(dim=1), even[2].norm(dim=0)])
    torch.testing.assert_close(norms, norms[:1].expand(3, -1))
    wanted = torch.einsum("rc,rk,or->ock", reduce, window, expand) * 7 / 3
    torch.testing.assert_close(torch.einsum("rc,rk,or->ock", *even), wanted)
