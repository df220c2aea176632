"""Laws 1, 2 and 5 of the forms, and the figures of the literature."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convsurgeon import (
    Blueprint,
    BlueprintSubspace,
    DepthwiseSeparable,
    Energy,
    FormError,
    Geometry,
    Share,
    SpatialSeparable,
)
from convsurgeon.forms.branched import Branched
from convsurgeon.forms.catalogue import FORMS, form_from_dict
from tests.layers import convs


def _built(form: Branched, conv: nn.Conv2d) -> nn.Module:
    geometry = Geometry.of(conv)
    module = form.build(geometry, conv.weight.device, conv.weight.dtype)
    form.fill(module, geometry, conv.weight, conv.bias)
    return module


def _full(kind: type[Branched], geometry: Geometry) -> Branched:
    extra: dict[str, Any] = {"width": 1.0} if kind is BlueprintSubspace else {}
    return kind(rank=kind().full_rank(geometry), **extra)


def _kernel(module: nn.Module, geometry: Geometry) -> Tensor:
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


@settings(max_examples=600)
@given(convs(), st.sampled_from(FORMS))
def test_law_1_full_rank_reproduces_the_layer(case: tuple[nn.Conv2d, Tensor], kind: type[Branched]) -> None:
    conv, x = case
    form = _full(kind, Geometry.of(conv))
    assume(kind is not SpatialSeparable or 1 not in conv.kernel_size)
    assert form.check(Geometry.of(conv)) is None
    with torch.no_grad():
        expected = conv(x)
        difference = (_built(form, conv)(x) - expected).abs().max()
    assert difference <= 1e-10 * max(1.0, float(expected.abs().max()))


@settings(max_examples=150)
@given(convs(), st.sampled_from(FORMS), st.data())
def test_law_2_lost_is_the_share_of_the_kernel_that_is_gone(
    case: tuple[nn.Conv2d, Tensor], kind: type[Branched], data: st.DataObject
) -> None:
    conv, _ = case
    plain = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, groups=conv.groups, bias=False, dtype=torch.float64
    )
    geometry = Geometry.of(plain)
    full = _full(kind, geometry)
    rank = data.draw(st.integers(1, full._rank))
    form = dataclasses.replace(full, rank=rank)
    if isinstance(form, BlueprintSubspace):
        form = dataclasses.replace(form, width=data.draw(st.sampled_from((0.2, 0.5, 1.0))))
    with torch.no_grad():
        gone = (_kernel(_built(form, plain), geometry) - plain.weight).square().sum() / plain.weight.square().sum()
    lost = form.lost(geometry, plain.weight)
    assert lost == pytest.approx(float(gone), abs=1e-9)
    if rank > 1:
        assert lost <= dataclasses.replace(form, rank=rank - 1).lost(geometry, plain.weight) + 1e-12


@settings(max_examples=200)
@given(convs(), st.sampled_from(FORMS), st.data())
def test_law_5_predicted_costs_are_the_counted_ones(
    case: tuple[nn.Conv2d, Tensor], kind: type[Branched], data: st.DataObject
) -> None:
    conv, x = case
    geometry = Geometry.of(conv)
    norm = data.draw(st.sampled_from((None, "batch")))
    rank = data.draw(st.integers(1, _full(kind, geometry)._rank))
    form = kind(rank=rank, init="random", norm=norm)
    module = form.build(geometry, conv.weight.device, conv.weight.dtype).eval()
    assert form.params(geometry) == sum(parameter.numel() for parameter in module.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = module(x)
    assert 2 * x.shape[0] * form.macs(geometry, x.shape[2:]) == counter.get_total_flops()
    assert geometry.output_size(x.shape[2:]) == out.shape[2:] == conv(x).shape[2:]


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


@pytest.mark.parametrize("kind", FORMS)
def test_the_bias_sits_once_on_the_last_conv(kind: type[Branched]) -> None:
    conv = nn.Conv2d(8, 12, 3)
    form = kind(rank=2)
    convs_ = [module for module in _built(form, conv).modules() if isinstance(module, nn.Conv2d)]
    stages = len(convs_) // form.branches
    others = [False] * (len(convs_) - stages)
    assert [module.bias is not None for module in convs_] == [False] * (stages - 1) + [True] + others
    assert torch.equal(convs_[stages - 1].bias, conv.bias)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_share_is_kept_and_used(kind: type[Branched], share: float) -> None:
    conv = nn.Conv2d(32, 48, 3, padding=1, stride=2)
    geometry = Geometry.of(conv)
    form = kind(rank=Share(share)).settle(geometry, conv.weight)
    macs = form.macs(geometry, (64, 64)) / geometry.macs((64, 64))
    more = dataclasses.replace(form, rank=form._rank + 8).macs(geometry, (64, 64)) / geometry.macs((64, 64))
    assert macs <= share * 1.01 or form.rank == 1
    assert more > share * 0.99
    assert form._rank < 16 or form._rank % 8 == 0
    assert form_from_dict(kind(rank=Share(share)).to_dict()) == kind(rank=Share(share))


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
        (nn.Conv2d(16, 16, 3), DepthwiseSeparable(rank=12), r"rank 12 exceeds 9 \(3x3 kernel\); pass rank <= 9"),
        (nn.Conv2d(16, 4, 3), DepthwiseSeparable(rank=5), r"rank 5 exceeds 4 \(4 channels per group\)"),
        (nn.Conv2d(4, 16, 3), Blueprint(rank=5), r"rank 5 exceeds 4 \(4 channels per group\)"),
        (nn.Conv2d(8, 8, (1, 3)), Blueprint(rank=4), r"rank 4 exceeds 3 \(1x3 kernel\)"),
    ],
)
def test_check_gives_a_reason(geometry: nn.Conv2d, form: Branched, reason: str) -> None:
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


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("rank", [3, Energy(0.75)])
def test_forms_survive_json(kind: type[Branched], rank: int | Energy) -> None:
    form = kind(rank=rank)
    assert form_from_dict(form.to_dict()) == form


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"form": "fourier"}, "unknown form 'fourier'; known are depthwise_separable"),
        ({"form": "blueprint", "depth": 3}, "blueprint: unknown field 'depth'"),
        ({"form": "blueprint", "rank": {"energy": 0.9, "more": 1}}, "a rank rule reads"),
        ({"form": "blueprint", "rank": "two"}, "rank must be an int"),
    ],
)
def test_damaged_forms_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(FormError, match=message):
        form_from_dict(values)
