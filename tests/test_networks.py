"""The unconverted networks give their published figures here: every comparison in the other tests stands on these."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from tests import networks
from tests.networks import needs_data


@needs_data
@pytest.mark.parametrize(("name", "percent"), [("resnet20", 91.63), ("resnet56", 92.60)])
def test_cifar_reference(name: str, percent: float) -> None:
    assert networks.cifar_top1(networks.pretrained(name)) == pytest.approx(percent, abs=0.005)


@needs_data
def test_first_set12_images() -> None:
    assert 29.0 < networks.set12_psnr(networks.pretrained("dncnn"), images=1) < 31.0


@needs_data
@pytest.mark.slow
def test_set12_reference() -> None:
    assert networks.set12_psnr(networks.pretrained("dncnn")) == pytest.approx(30.42, abs=0.005)


@needs_data
@pytest.mark.parametrize(("scale", "decibels"), [(2, 37.36), pytest.param(3, 33.35, marks=pytest.mark.slow)])
def test_vdsr_reference(scale: int, decibels: float) -> None:
    assert networks.vdsr_psnr(networks.pretrained("vdsr"), scale) == pytest.approx(decibels, abs=0.005)


@needs_data
def test_metrics_leave_the_mode_as_it_was() -> None:
    model = networks.pretrained("resnet20").train()
    model.get_submodule("layer1").eval()
    networks.cifar_top1(model)
    assert model.training
    assert not model.get_submodule("layer1").training


@needs_data
def test_calibration_images() -> None:
    batch = networks.cifar_calibration(50, seed=3)
    assert batch.shape == (50, 3, 32, 32)
    assert torch.equal(batch, networks.cifar_calibration(50, seed=3))
    assert not torch.equal(batch, networks.cifar_calibration(50, seed=4))


@needs_data
def test_noisy_crops_are_what_the_denoiser_cleans() -> None:
    crops = networks.noisy_crops(4, 48, seed=1)
    assert crops.shape == (4, 1, 48, 48)
    with torch.inference_mode():
        removed = crops - networks.pretrained("dncnn")(crops)
    assert removed.std().item() == pytest.approx(networks.SIGMA, rel=0.1)


@needs_data
def test_blurred_crops() -> None:
    crops = networks.blurred_crops(3, 48, seed=1)
    assert crops.shape == (3, 1, 48, 48)
    assert 0 <= crops.min() <= crops.max() <= 1


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (networks.cifar_resnet(20), (1, 3, 32, 32)),
        (networks.cifar_resnet(56), (1, 3, 32, 32)),
        (networks.dncnn(), (1, 1, 16, 16)),
        (networks.vdsr(), (1, 1, 16, 16)),
        (networks.segnet(5, 4), (1, 3, 64, 32)),
    ],
    ids=["resnet20", "resnet56", "dncnn", "vdsr", "segnet"],
)
def test_traceable(model: nn.Module, shape: tuple[int, ...]) -> None:
    model.eval()
    x = torch.randn(shape)
    with torch.inference_mode():
        assert torch.equal(fx.symbolic_trace(model)(x), model(x))


def test_segnet_layout() -> None:
    model = networks.segnet(12, 64)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 26
    assert {conv.kernel_size for conv in convs} == {(3, 3)}


def test_torchvision_imports_and_runs() -> None:
    model = networks.import_torchvision().models.resnet18().eval()
    assert fx.symbolic_trace(model)(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_timm_imports_and_runs() -> None:
    model = networks.import_timm().create_model("resnet18").eval()
    assert fx.symbolic_trace(model)(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
