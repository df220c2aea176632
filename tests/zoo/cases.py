"""The models of the sweep, how each is built, given random weights, and fed.

A fresh network hides mistakes: zero-initialised last norms and layer scales of 1e-6 switch whole branches off, and
without batch-norm statistics the rest dies or explodes. `randomise` draws constants anew and runs the batch norms once,
so that the output depends on every conv; the sweep checks that with a rank-1 conversion, which must differ.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.graph.outputs import tensors_in
from tests.networks import import_timm, import_torchvision

CHOSEN = Path(__file__).parent / "timm.json"
_SIZES = (96, 224)
_LARGE = 320  # for detectors
_VIDEO = {"raft_large": 2, "raft_small": 2}


@dataclass(frozen=True)
class Case:
    """One model: `torchvision` or `timm`, the family it stands for, its name there."""

    source: str
    family: str
    name: str

    @property
    def key(self) -> str:
        """`torchvision:resnet18`, as on the command line."""
        return f"{self.source}:{self.name}"


def cases() -> list[Case]:
    """Return every torchvision model, and one model of every timm family that holds a dense conv."""
    return [*torchvision_cases(), *timm_cases()]


def timm_cases() -> list[Case]:
    """Return the models that `choose` found smallest."""
    chosen = json.loads(CHOSEN.read_text(encoding="utf-8"))
    return [Case("timm", family, name) for family, name in chosen.items()]


def torchvision_cases() -> list[Case]:
    """Return all builders; the family is the module they come from. Of a detector the backbone is taken."""
    models = import_torchvision().models
    names = sorted(models.list_models())
    return [Case("torchvision", models.get_model_builder(name).__module__.split(".", 2)[2], name) for name in names]


def build(case: Case) -> nn.Module:
    """Return the model in eval mode, with random weights."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _timm(case.name) if case.source == "timm" else _torchvision(case)
    return model.eval()


def _timm(name: str) -> nn.Module:
    model: nn.Module = import_timm().create_model(name, pretrained=False)
    return model


def _torchvision(case: Case) -> nn.Module:
    models = import_torchvision().models
    options: dict[str, Any] = {"weights": None}
    if case.family.split(".")[0] in ("segmentation", "detection"):
        options["weights_backbone"] = None
    if case.family == "quantization.googlenet" or case.family in ("googlenet", "inception", "quantization.inception"):
        options["init_weights"] = False  # scipy's truncated normals take minutes
    model: nn.Module = models.get_model(case.name, **options)
    backbone = getattr(model, "backbone", None)
    return backbone if case.family.startswith("detection") and isinstance(backbone, nn.Module) else model


def randomise(model: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Draw constant parameters anew and give batch norms the statistics of one batch."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                _draw(name, parameter)
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train().momentum = 1.0
        _run(model, example)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval().momentum = momentum
        for norm in norms:  # one pixel per channel has no spread
            if norm.running_var is not None:
                norm.running_var.nan_to_num_(1.0).clamp_(min=1e-4)


def _draw(name: str, parameter: Tensor) -> None:
    if name.endswith("bias") or parameter.dim() > 2:
        parameter.normal_(0, 0.1)
    else:
        parameter.uniform_(0.5, 1.0)


def examples(case: Case, model: nn.Module) -> Iterator[tuple[Tensor, ...]]:
    """Yield inputs to try, small ones first."""
    config = getattr(model, "default_cfg", None) or getattr(model, "pretrained_cfg", None)
    wanted = tuple(config["input_size"]) if isinstance(config, dict) and "input_size" in config else (3, 224, 224)
    family = case.family.split(".")[0]
    generator = torch.Generator().manual_seed(0)

    def images(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if family == "video":
        yield from ((images(1, 3, frames, size, size),) for frames, size in ((8, 64), (16, 112), (16, 224)))
    elif family == "optical_flow":
        yield images(1, 3, 128, 128), images(1, 3, 128, 128)
    else:
        for size in dict.fromkeys((*_SIZES, wanted[-1], _LARGE)):
            yield (images(2, wanted[0], size, size),)


def ready(case: Case) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the model with random weights, and the first input that it runs on."""
    model = build(case)
    for example in examples(case, model):
        try:
            with torch.no_grad():
                alive = bool(tensors_in(_run(model, example)))
        except Exception as error:  # whatever a model says of a size it does not like
            reason = error
            continue
        if alive:
            randomise(model, example)
            return model, example
    raise RuntimeError(f"{case.key} runs on no example") from reason


def _run(model: nn.Module, example: tuple[Tensor, ...]) -> Any:
    return model(*(tensor.clone() for tensor in example))
