"""Networks as other packages wrap, adapt, prune, quantise and compile them: right, or refused with the line that helps.

The table "With other packages" in `examples/guide.md` says the same.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.data import DataLoader, TensorDataset

import convsurgeon as cs
from tests import nets

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def _package(name: str) -> Any:
    """Return a package, or skip the test where it is not installed."""
    return pytest.importorskip(name, exc_type=ImportError)


def _plain() -> nn.Module:
    torch.manual_seed(3)
    return nets.Plain().eval()


def _convert(model: nn.Module, example: object = X, images: Any = IMAGES, rank: int = 2) -> cs.Result:
    """Convert every conv but the stem; rank 9 is a full one, without a loss."""
    plan = cs.plan(model, example, forms=[cs.DepthwiseSeparable(rank=rank)], allow_growth=True)
    return cs.convert(model, example, calibration=images, forms=plan, progress=False)


# transformers


def _hub_model() -> Any:
    hub = _package("transformers")
    torch.manual_seed(0)
    sizes = hub.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
    return hub.ResNetForImageClassification(sizes).eval()


def test_a_model_of_transformers_is_saved_and_built_again(tmp_path: Path) -> None:
    original = _hub_model()
    example, images = torch.randn(1, 3, 32, 32), torch.randn(24, 3, 32, 32)
    result = _convert(original, example, images)
    assert len(result.changes) == 4
    assert type(result.model(example)) is type(original(example))  # logits, attentions and so on by name
    with pytest.warns(UserWarning, match="from_pretrained"):
        result.model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="from_pretrained"):
        copy.deepcopy(result.model).resnet.save_pretrained(tmp_path / "part")
    assert torch.equal(pickle.loads(pickle.dumps(result.model))(example).logits, result.model(example).logits)
    built = cs.rebuild(type(original)(original.config).eval(), result.plan, tmp_path / "model.safetensors")
    assert torch.equal(built(example).logits, result.model(example).logits)
    assert cs.onnx.export(result.model, example, tmp_path / "net.onnx").parity.passed


def test_what_was_not_rewritten_is_saved_without_a_warning(tmp_path: Path) -> None:
    _hub_model().save_pretrained(tmp_path)
    kept = cs.convert(_hub_model(), torch.randn(1, 3, 32, 32), calibration=False, forms={"*": None}, progress=False)
    kept.model.save_pretrained(tmp_path)


# Adapters


def _with_adapters() -> Any:
    adapters = _package("peft")
    adapted = adapters.get_peft_model(_plain(), adapters.LoraConfig(r=2, target_modules=["stem", "body", "down"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapted.eval()


def test_adapters_stay_beside_the_convs_that_are_rewritten() -> None:
    adapted = _with_adapters()
    result = _convert(adapted, rank=9)
    assert {name.split(".")[-2] for name in result.changes} == {"body", "down"}
    torch.testing.assert_close(result.model(X), adapted(X), rtol=1e-3, atol=1e-4)


def test_merged_adapters_are_weights_like_others() -> None:
    adapted = _with_adapters()
    wanted = adapted(X)
    result = _convert(adapted.merge_and_unload(), rank=9)
    assert set(result.changes) == {"body", "down"}
    torch.testing.assert_close(result.model(X), wanted, rtol=1e-3, atol=1e-4)


def test_a_converted_network_takes_adapters() -> None:
    adapters = _package("peft")
    adapted = adapters.get_peft_model(_convert(_plain()).model, adapters.LoraConfig(r=2, target_modules=["head"]))
    adapted(X).sum().backward()
    assert any(parameter.grad is not None for parameter in adapted.parameters())


# Lightning


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_module_is_converted_and_trained(tmp_path: Path) -> None:
    lightning = _package("pytorch_lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = _plain()
            self.example_input_array = X

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

        def training_step(self, batch: list[Tensor], _: int) -> Any:
            return self(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    result = _convert(Module().eval())
    assert set(result.changes) == {"net.body", "net.down"}
    assert isinstance(result.model, Module)
    assert cs.onnx.export(result.model, X, tmp_path / "net.onnx").parity.passed
    before = copy.deepcopy(result.model.state_dict())
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(result.model, DataLoader(TensorDataset(IMAGES), 8))
    moved = [name for name, value in result.model.state_dict().items() if not torch.equal(value, before[name])]
    assert any("body" in name for name in moved)


# Masks, norms of weights, quantisation


def _prune(conv: nn.Module) -> None:
    prune.l1_unstructured(conv, "weight", 0.5)


WAYS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[nn.Module], Any], str]] = {
    "pruned": (_prune, lambda conv: prune.remove(conv, "weight"), "prune.remove"),
    "old weight norm": (nn.utils.weight_norm, nn.utils.remove_weight_norm, "remove_weight_norm"),
    "old spectral norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm, "remove_spectral_norm"),
    "weight norm": (
        parametrizations.weight_norm,
        lambda conv: parametrize.remove_parametrizations(conv, "weight"),
        "remove_parametrizations",
    ),
    "spectral norm": (
        parametrizations.spectral_norm,
        lambda conv: parametrize.remove_parametrizations(conv, "weight"),
        "remove_parametrizations",
    ),
}
"""What computes a conv's weight, what makes it a plain one, and the name of that."""


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_weight_that_is_computed_is_left_with_what_makes_it_plain(way: str) -> None:
    put_on, take_off, name = WAYS[way]
    model: Any = _plain()
    put_on(model.body)
    model.eval()
    skips = {skip.name: skip.reason for skip in _convert(model).skipped}
    assert name in skips["body"]
    wanted = model(X)
    take_off(model.body)
    result = _convert(model, rank=9)
    assert set(result.changes) == {"body", "down"}
    torch.testing.assert_close(result.model(X), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantisation_aware_training_comes_after_the_conversion() -> None:
    from torch.ao import quantization

    def prepared(model: nn.Module) -> nn.Module:
        model.train().qconfig = quantization.get_default_qat_qconfig("x86")  # type: ignore[assignment]
        return quantization.prepare_qat(model)

    skips = {skip.name: skip.reason for skip in _convert(prepared(_plain()).eval()).skipped}
    assert "quantisation-aware" in skips["body"]
    prepared(_convert(_plain()).model)(X).sum().backward()


@pytest.mark.filterwarnings("ignore")
def test_torchao_comes_after_the_conversion() -> None:
    quantised = _package("torchao.quantization")
    model = _plain()
    quantised.quantize_(model, quantised.Int8WeightOnlyConfig())
    with pytest.raises(cs.errors.CaptureError, match=r"head\.weight is a Int8Tensor"):
        _convert(model)
    result = _convert(_plain()).model
    wanted = result(X)
    quantised.quantize_(result, quantised.Int8WeightOnlyConfig())
    torch.testing.assert_close(result(X), wanted, rtol=0.05, atol=0.05)


# Wrappers


def _compiled_inside() -> nn.Module:
    model: Any = _plain()
    model.body = torch.compile(model.body, backend="eager")
    return model


def _compiled_in_place() -> nn.Module:
    model = _plain()
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: torch.compile(_plain(), backend="eager"), "_orig_mod"),
        (_compiled_inside, "body is compiled"),
        (_compiled_in_place, "is compiled"),
        (lambda: nn.DataParallel(_plain()), "model.module"),
    ],
)
def test_wrappers_come_after_the_conversion(make: Callable[[], nn.Module], named: str) -> None:
    with pytest.raises(cs.errors.CaptureError, match=named):
        _convert(make())


def test_the_result_may_be_wrapped() -> None:
    model = _convert(_plain()).model
    wanted = model(X)
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        torch.testing.assert_close(wrapped(X), wanted)
