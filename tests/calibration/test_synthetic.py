"""Images made up from the network alone: natural, in its own numbers, as its batch norms know them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import convsurgeon as cs
from convsurgeon import cli
from convsurgeon.calibration.dataset import Calibration
from convsurgeon.calibration.dead_leaves import draw_images, fractal_noise
from convsurgeon.calibration.normalisation import (
    Normalisation,
    common_normalisations,
    find_by_norms,
    norm_divergence,
    trained_norms,
)
from convsurgeon.calibration.synthetic import synthesise, synthetic_images
from convsurgeon.report.page import page

EXAMPLE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
FORM = cs.DepthwiseSeparable(rank=2)
NETWORK = f"{Path(__file__).resolve().parent / 'knowing.py'}:knowing"


def _knowing(scale: Normalisation, channels: int = 3, seed: int = 0) -> nn.Module:
    """A network whose batch norms have seen drawn images in a scale."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, 12), (12, 12), (12, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs, momentum=None), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    with torch.no_grad():
        model(scale.apply(draw_images(96, channels, 16, 16, torch.Generator().manual_seed(seed + 77))))
    return model.eval()


def _stated(model: nn.Module, limit: int, **scale: Any) -> Tensor:
    """Synthetic images in a normalisation that is stated."""
    made = synthesise(cs.capture(model, EXAMPLE), limit, seed=0, progress=False, **scale)
    return torch.cat([one.args[0] for one in (*made.fitted, *made.held_back)])


IMAGENET = common_normalisations(3)[3]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 20, 33), (5, 97, 64), (3, 1, 1)])
def test_drawn_images_are_pixels_and_follow_from_the_generator(shape: tuple[int, int, int]) -> None:
    images = draw_images(7, *shape, torch.Generator().manual_seed(1))
    assert images.shape == (7, *shape)
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert torch.equal(images, draw_images(7, *shape, torch.Generator().manual_seed(1)))
    assert not torch.equal(images, draw_images(7, *shape, torch.Generator().manual_seed(2)))


def test_drawn_images_have_the_statistics_of_photographs() -> None:
    """Neighbours nearly alike, colours too; power falls as frequency to about minus two (Field 1987)."""
    images = draw_images(80, 3, 32, 32, torch.Generator().manual_seed(0))
    grey = images.mean(1)
    grey = grey - grey.mean((1, 2), keepdim=True)
    assert float((grey[:, :, 1:] * grey[:, :, :-1]).mean() / grey.square().mean()) > 0.85
    spectrum = torch.fft.rfft2(grey).abs().square().mean(0)[0, 2:13]
    frequency = torch.arange(2, 13).log()
    slope = torch.linalg.lstsq(torch.stack([frequency, torch.ones(11)], 1), spectrum.log()[:, None]).solution[0]
    assert -2.8 < float(slope) < -1.4
    red, green = images[:, 0].flatten(), images[:, 1].flatten()
    assert float(torch.corrcoef(torch.stack([red, green]))[0, 1]) > 0.8


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(2, 40), st.integers(2, 40), st.floats(0, 3), st.integers(0, 99))
def test_fractal_noise_has_unit_variance(count: int, height: int, width: int, slope: float, seed: int) -> None:
    noise = fractal_noise(torch.full((count,), slope), height, width, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(noise.mean((1, 2)), torch.zeros(count), atol=1e-4, rtol=0)
    torch.testing.assert_close(noise.square().mean((1, 2)), torch.ones(count), atol=1e-3, rtol=0)


@pytest.mark.parametrize("scale", common_normalisations(3), ids=lambda scale: scale.name)
def test_batch_norms_tell_the_scale_of_the_pixels(scale: Normalisation) -> None:
    model = _knowing(scale)
    pixels = draw_images(48, 3, 16, 16, torch.Generator().manual_seed(5))
    with torch.no_grad():
        found = find_by_norms(model, trained_norms(model), pixels, cs.Example.of(EXAMPLE), 0)
    black = torch.tensor(found.mean) - torch.tensor(scale.mean)
    assert float(black.abs().max()) < 0.1
    torch.testing.assert_close(torch.tensor(found.std), torch.tensor(scale.std), rtol=0.25, atol=0)


def test_images_come_nearer_to_what_the_batch_norms_know_and_stay_pixels() -> None:
    dark = Normalisation("dark", (-0.8,) * 3, (2.0,) * 3)
    model = _knowing(dark)
    images = _stated(model, 64, mean=0.0, std=1.0)
    before = draw_images(64, 3, 16, 16, torch.Generator().manual_seed(0))
    assert isinstance(images, Tensor)
    with torch.no_grad():
        apart = [float(norm_divergence(model, trained_norms(model), cs.Example.of(one))) for one in (before, images)]
    assert apart[1] < 0.5 * apart[0]
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_the_same_seed_gives_the_same_images_and_nothing_else_changes() -> None:
    model = _knowing(IMAGENET)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chance = torch.random.get_rng_state()
    first, again, other = (synthetic_images(model, EXAMPLE, 20, seed=seed, progress=False) for seed in (1, 1, 2))
    assert isinstance(first, Tensor)
    assert isinstance(other, Tensor)
    assert first.shape == (20, 3, 16, 16)
    assert torch.equal(first, again)  # type: ignore[arg-type]
    assert not torch.equal(first, other)
    assert torch.equal(chance, torch.random.get_rng_state())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class _Denoiser(nn.Module):
    """Takes the mean of neighbours: worth it where there is much noise."""

    def __init__(self, size: int, times: int = 1) -> None:
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(1, 1, size, padding=size // 2, padding_mode="replicate", bias=False)
        nn.init.constant_(self.conv.weight, 1 / size**2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=float(self.times)) if self.times > 1 else x)


def test_a_denoiser_gets_noise() -> None:
    seen = cs.capture(_Denoiser(3), torch.rand(1, 1, 32, 32))
    data = synthesise(seen, 16, seed=0, progress=False)
    assert "faults that the network removes: noise of sigma" in data.notes[0]
    assert "sigma 5/255" not in data.notes[0]
    clean = draw_images(16, 1, 32, 32, torch.Generator().manual_seed(0))
    rough = torch.cat([one.args[0] for one in (*data.fitted, *data.held_back)])
    assert float((rough - clean).square().mean()) > (20 / 255) ** 2


def test_a_network_that_changes_nothing_mends_nothing() -> None:
    data = synthesise(cs.capture(_Denoiser(1), torch.rand(1, 1, 32, 32)), 16, seed=0, progress=False)
    assert "removes" not in data.notes[0]
    assert "guessed from the example" in data.notes[0]


def test_super_resolution_gets_small_images() -> None:
    class Bicubic(_Denoiser):
        def forward(self, x: Tensor) -> Tensor:
            up = F.interpolate(x, scale_factor=2.0, mode="bicubic")
            return up + 0.6 * (up - self.conv(up))  # sharpened, as what was made smaller wants to be

    seen = cs.capture(Bicubic(3, 2), torch.rand(1, 1, 24, 24))
    data = synthesise(seen, 16, seed=0, progress=False)
    assert "made 2 times smaller" in data.notes[0]
    assert data.fitted[0].args[0].shape[2:] == (24, 24)


class _Pair(nn.Module):
    """Two images of the same size in."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.one(a) + self.two(b)


class _Four(nn.Module):
    """Takes batches of four and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(4, 3, 12, 12)).mean((2, 3))


class _Last(nn.Module):
    """A network that takes its channels last."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.permute(0, 3, 1, 2))


def test_channels_may_come_last() -> None:
    model = _knowing(IMAGENET)
    given = synthetic_images(_Last(model), EXAMPLE.permute(0, 2, 3, 1).contiguous(), 32, progress=False)
    wanted = synthetic_images(model, EXAMPLE, 32, progress=False)
    torch.testing.assert_close(given.permute(0, 3, 1, 2), wanted, rtol=1e-3, atol=3e-2)
    result = _without_images(_Last(model), EXAMPLE.permute(0, 2, 3, 1), 32, forms=[FORM])
    assert result.changes
    assert result.made_up.held_back[0].tensors()[0].shape[1:] == (16, 16, 3)


def test_several_inputs_are_batches_and_calibrate() -> None:
    example = (torch.rand(1, 3, 12, 12), torch.rand(1, 1, 12, 12))
    batches = synthetic_images(_Pair(), example, 70, progress=False)
    assert sum(len(one.tensors()[0]) for one in batches) == 70  # type: ignore[union-attr]
    assert batches[0].tensors()[1].shape[1:] == (1, 12, 12)  # type: ignore[union-attr]
    result = _without_images(_Pair(), example, 64, forms=[FORM], policy=cs.select.everything())
    assert result.report.reconstruction


def test_a_network_of_bytes_gets_what_its_batch_norms_know() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _knowing(IMAGENET)
            self.scale = IMAGENET

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(self.scale.apply(x.float() / 255))
            return out

    model, example = Scaled().eval(), torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
    images = synthetic_images(model, example, 32, progress=False)
    assert isinstance(images, Tensor)
    assert images.dtype == torch.uint8
    assert int(images.max()) > 200
    with torch.no_grad():
        assert float(norm_divergence(model, trained_norms(model), cs.Example.of(images))) < 0.1
    result = _without_images(model, example, 32, forms=[FORM], policy=cs.select.min_channels(12))
    assert result.report.reconstruction.error_after < 0.5 * result.report.reconstruction.error_before


@pytest.mark.filterwarnings("ignore:calibration. no gradients")  # sensitivity may ask for single images
def test_a_model_of_one_batch_size_gets_whole_batches() -> None:
    seen = cs.capture(_Four(), torch.rand(4, 3, 12, 12))
    data = synthesise(seen, 70, seed=0, progress=False)
    assert {len(one.args[0]) for one in (*data.fitted, *data.held_back)} == {4}
    result = _without_images(_Four(), torch.rand(4, 3, 12, 12), 70, forms=[FORM], policy=cs.select.everything())
    assert result.report.reconstruction


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.randint(9, (1, 3, 8, 8)), r"input 1 of the example \(1x3x8x8\) is int64, not an image"),
        (torch.rand(3, 8, 8), r"input 1 of the example \(3x8x8\) is float32, not an image"),
    ],
)
def test_what_is_no_image_is_refused(example: Tensor, message: str) -> None:
    class Anything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.float())

    with pytest.raises(cs.errors.CalibrationError, match=message):
        cs.convert(Anything(), example, policy=cs.select.everything())
    assert cs.convert(Anything(), example, policy=cs.select.everything(), calibration=False).plan.steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit=0"),
        ({"mean": (1.0, 2.0)}, "mean: 2 values"),
        ({"std": 0.0}, "std: "),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(cs.errors.CalibrationError, match=message):
        cs.convert(_knowing(IMAGENET), EXAMPLE, calibration=cs.Images(**options), progress=False)


def test_a_network_without_gradients_keeps_the_drawn_images() -> None:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _knowing(IMAGENET)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                out: Tensor = self.inner(x)
            return out

    images = _stated(Closed(), 16, mean=IMAGENET.mean, std=IMAGENET.std)
    assert isinstance(images, Tensor)
    torch.testing.assert_close(images, IMAGENET.apply(draw_images(16, 3, 16, 16, torch.Generator().manual_seed(0))))


def _without_images(model: nn.Module, example: Any, count: int, **choices: Any) -> cs.Result:
    """Convert with so many synthesised images."""
    return cs.convert(model, example, calibration=cs.Images(limit=count), progress=False, **choices)


@pytest.fixture(scope="module")
def result() -> cs.Result:
    """A conversion without images."""
    return _without_images(_knowing(IMAGENET), EXAMPLE, 80, forms=[FORM], policy=cs.select.min_channels(12))


def test_a_conversion_without_images_says_so_first_and_beats_the_weights_alone(result: cs.Result) -> None:
    (note,) = result.report.notes
    assert str(result.report).startswith("note: No images were given, so 80 synthetic ones were made")
    assert "in ImageNet's normalisation; fitted to 3 batch norms (divergence" in note
    assert note in result.report.to_markdown().splitlines()[2]
    assert result.report.to_dict()["notes"] == [note]
    assert note.split("'")[0] in page("Model", result.report)
    fit = result.report.reconstruction
    assert fit.error_after < 0.5 * fit.error_before
    data = result.made_up
    assert data is not None
    assert data.synthetic


def test_false_is_for_the_weights_alone() -> None:
    alone = cs.convert(_knowing(IMAGENET), EXAMPLE, forms=[FORM], calibration=False)
    assert not alone.report.notes
    assert not alone.report.reconstruction
    assert alone.made_up is None
    with pytest.raises(cs.errors.CalibrationError, match="type bool"):
        cs.convert(_knowing(IMAGENET), EXAMPLE, calibration=True)


def test_a_budget_weighs_its_plans_on_made_up_images() -> None:
    model = _knowing(IMAGENET)
    made = _without_images(
        model, EXAMPLE, 64, forms=[FORM, cs.DepthwiseSeparable(rank=3)], policy=cs.select.min_channels(12),
        goal=cs.Budget(macs=0.6),
    )  # fmt: skip
    assert made.report.reconstruction
    assert made.report.notes
    data = cs.Images(limit=64)
    swept = cs.sweep(
        model, EXAMPLE, calibration=data, shares=[0.6], forms=[FORM], policy=cs.select.min_channels(12), progress=False
    )
    assert str(swept).startswith("note: No images were given")
    with pytest.raises(cs.errors.CalibrationError, match="without images no plan can be judged"):
        cs.sweep(model, EXAMPLE, calibration=False)


def test_a_plan_that_was_saved_is_fitted_to_made_up_images(result: cs.Result) -> None:
    again = _without_images(result.original, EXAMPLE, 80, forms=result.plan)
    theirs, ours = again.model.state_dict(), result.model.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_recovery_goes_on_with_the_made_up_images(result: cs.Result) -> None:
    better = cs.recover(result, recipe=cs.Recipe(epochs=2, batch_size=16, lr=1e-3), progress=False)
    done = better.report.recovery
    assert done.images + done.held_back == 80
    assert better.report.notes == result.report.notes
    alone = cs.convert(result.original, EXAMPLE, forms=[FORM], policy=cs.select.min_channels(12), calibration=False)
    recipe = cs.Recipe(epochs=1, batch_size=16, lr=1e-3, limit=64)
    done = cs.recover(alone, recipe=recipe, progress=False).report.recovery
    assert done.images + done.held_back == 64


def test_int8_takes_its_ranges_from_the_made_up_images(result: cs.Result, tmp_path: Path) -> None:
    bundle = cs.export(result, tmp_path / "out", int8=True, pairs=0)
    assert "synthetic images" in bundle.agreement_on
    int8 = next(one for one in bundle.agreement if one.name == "model-int8.onnx")
    assert int8.sqnr_db > 10
    assert "No images were given" in (tmp_path / "out" / "report.md").read_text()


def test_the_command_line_makes_images_up(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", NETWORK, "--input", "1x3x12x12", "--rank", "2", "--limit", "64"]
    assert cli.main(command) == 0
    assert "so 64 synthetic" in capsys.readouterr().out
    assert cli.main([*command, "--mean", "0.5", "--std", "0.25"]) == 0
    assert "(pixel - 0.5) / 0.25" in capsys.readouterr().out
    assert cli.main([*command, "--calibrate", "none"]) == 0
    assert "synthetic" not in capsys.readouterr().out


def test_calibration_data_pass_as_they_are() -> None:
    data = Calibration(
        (cs.Example.of(torch.rand(4, 3, 16, 16)),), (cs.Example.of(torch.rand(2, 3, 16, 16)),), ("mine",)
    )
    made = cs.convert(_knowing(IMAGENET), EXAMPLE, forms=[FORM], calibration=data, progress=False)
    assert made.report.notes == ("mine",)
