"""Calibration: whatever images come, the fitted network is better than the factored one, or they are refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convsurgeon as cs
from convsurgeon.calibration.collect import read
from tests import nets, networks
from tests.calibration.loading import load
from tests.growing import convert_growing

X = torch.randn(96, 3, 12, 12)
LIKE = cs.Example((X[:2],))
FORMS: dict[str, cs.Form] = {
    "cp": cs.CP(rank=cs.Share(0.4)),
    "separable": cs.DepthwiseSeparable(rank=2),
    "blueprint": cs.Blueprint(rank=2),
    "subspace": cs.BlueprintSubspace(rank=2, width=0.5),
}


def _convert(model: nn.Module, **options: Any) -> cs.Result:
    options = {"forms": [cs.DepthwiseSeparable(rank=2)], "calibration": X, "progress": False} | options
    return cs.convert(model, X[:2], policy=cs.select.everything(), **options)


ROTATION = [(name, list(FORMS)[index % 4]) for index, name in enumerate(nets.CONVERTIBLE)]
EVERY = [
    pytest.param(name, form, marks=() if (name, form) in ROTATION else pytest.mark.slow)
    for name in nets.CONVERTIBLE
    for form in FORMS
]


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_every_net_is_fitted_and_ends_no_worse(name: str, form: str) -> None:
    model = nets.CONVERTIBLE[name]().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = _convert(model, forms=[FORMS[form]])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    done = result.report.reconstruction
    assert done.error_after <= done.error_before
    assert {site.name for site in done.sites} == set(result.changes)
    assert all(site.after <= site.before for site in done.sites)
    assert result.report.after.params == result.plan.params_after


def test_a_net_of_random_weights_gains_much() -> None:
    done = _convert(nets.Plain().eval()).report.reconstruction
    assert done.error_after < 0.5 * done.error_before


def test_full_rank_stays_exact() -> None:
    forms = [cs.DepthwiseSeparable(rank=9)]
    result = convert_growing(nets.Plain().eval(), X[:2], forms=forms, policy=cs.select.everything(), calibration=X)
    assert result.report.reconstruction.error_after < 1e-6


def test_the_same_seed_gives_the_same_weights_to_the_bit() -> None:
    model = nets.Shared().eval()
    one, two, other = (_convert(model, seed=seed).model.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_gradient_flags_and_modes_survive_the_fit() -> None:
    model = nets.Plain().train()
    model.down.weight.requires_grad_(False)
    result = _convert(model)
    assert all(module.training for module in result.model.modules())
    assert not result.model.down.branches[0].depthwise.weight.requires_grad
    assert result.model.body.branches[0].depthwise.weight.requires_grad


def test_dead_relus_and_constant_channels_do_no_harm() -> None:
    model = nets.Plain().eval()
    with torch.no_grad():
        model.norm.bias[:8] = -100.0
        model.norm.weight[8] = 0.0
        model.stem.weight[:4] = 0.0
    done = _convert(model).report.reconstruction
    assert done.error_after <= done.error_before


@pytest.mark.parametrize(
    "batches",
    [
        X,
        X.numpy(),
        [X[:50], X[50:60], X[60:]],
        [(X[:50], torch.zeros(50)), [X[50:], torch.zeros(46)]],
        DataLoader(TensorDataset(X, torch.zeros(96)), batch_size=40),
        (batch for batch in X.split(30)),
        itertools.repeat(X[:32]),
    ],
    ids=["tensor", "numpy", "list", "labelled", "loader", "generator", "endless"],
)
def test_what_batches_may_be(batches: object) -> None:
    data = read(batches, LIKE, limit=96)
    held = sum(len(batch.args[0]) for batch in data.held_back)
    assert (data.images, held) == (77, 19)


def test_keyword_batches() -> None:
    like = cs.Example((), {"x": X[:2], "scale": torch.ones(1)})
    data = read([{"x": X, "scale": torch.ones(1), "label": torch.zeros(96)}], like)
    assert set(data.fitted[0].kwargs) == {"x", "scale"}


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "it holds no images"),
        (3, "type int"),
        ("folder", "folder does not exist"),
        (torch.tensor(1.0), "a single number"),
        ([X[:, :2]], "batch 0 has shape 96x2x12x12, the example 2x3x12x12"),
        ([X, X[0]], "batch 1 has shape 3x12x12"),
        ([X, X * float("nan")], "batch 1 holds NaN or infinity"),
        (["a"], "a: does not exist"),
    ],
)
def test_batches_that_will_not_do(batches: object, message: str) -> None:
    with pytest.raises(cs.errors.CalibrationError, match=message):
        read(batches, LIKE)


def test_few_images_are_used_with_a_word() -> None:
    result = _convert(nets.Plain().eval(), calibration=X[:5])
    assert "5 images are few" in str(result.report)
    assert result.report.reconstruction.error_after <= result.report.reconstruction.error_before


@networks.needs_data
@pytest.mark.usefixtures("all_epochs")
def test_resnet20_at_rank_two_keeps_what_it_learned() -> None:
    model = networks.pretrained("resnet20")
    images = networks.cifar_calibration(256, seed=0)
    result = cs.convert(model, images[:1], forms=[cs.Blueprint(rank=2)], calibration=images, progress=False)
    assert networks.cifar_top1(result.model) > 78


def _saved(path: Path, array: Any) -> Path:
    np.save(path, array)
    return path


def test_images_from_arrays_and_folders(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 60, 3), dtype=np.uint8)
    whole = load(_saved(tmp_path / "a.npy", pixels), (1, 3, 40, 60), mean=[0.5], std=[0.25])
    expected = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    torch.testing.assert_close(whole, expected)
    np.savez(tmp_path / "b.npz", images=pixels, labels=np.zeros(6))
    assert load(tmp_path / "b.npz", (1, 3, 20, 20), limit=3).shape == (3, 3, 20, 20)
    assert load(_saved(tmp_path / "c.npy", pixels[..., 0]), (1, 1, 40, 60)).shape == (6, 1, 40, 60)
    floats = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(load(_saved(tmp_path / "d.npy", floats.numpy()), (1, 1, 8, 8)), floats)
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}.png")
    torch.testing.assert_close(load(folder, (1, 3, 40, 60), mean=[0.5], std=[0.25]), whole)


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda path: path / "none.npy", (1, 3, 8, 8), "none.npy does not exist"),
        (lambda path: _saved(path / "x.npy", np.zeros((2, 8, 8, 4))), (1, 3, 8, 8), "the network takes 3 channels"),
        (lambda path: _saved(path / "x.npy", np.zeros(3)), (1, 3, 8, 8), r"holds float64 \(3,\)"),
        (lambda path: path, (1, 3, 8, 8), "holds no images"),
    ],
)
def test_images_that_will_not_do(tmp_path: Path, make: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(cs.errors.CalibrationError, match=message):
        load(make(tmp_path), shape)


def test_normalisation_must_fit_the_channels(tmp_path: Path) -> None:
    path = _saved(tmp_path / "x.npy", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(cs.errors.CalibrationError, match="mean: 2 values for 3 channels"):
        load(path, (1, 3, 8, 8), mean=[0.1, 0.2])
    with pytest.raises(cs.errors.CalibrationError, match="std: every value must be above 0"):
        load(path, (1, 3, 8, 8), std=[0.0])
    for name in ("mean", "std"):
        with pytest.raises(cs.errors.CalibrationError, match=f"{name}: holds NaN or infinity"):
            load(path, (1, 3, 8, 8), **{name: [float("inf")]})
    with pytest.raises(cs.errors.CalibrationError, match="limit=0"):
        load(path, (1, 3, 8, 8), limit=0)
