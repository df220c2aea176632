"""The numbers in which a network takes its pixels: 0 to 1, 0 to 255, ImageNet's normalisation, or others.

Its batch norms tell: they hold the mean and variance of every channel that the network was trained on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from convsurgeon.base.errors import CalibrationError
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.example import Example
from convsurgeon.graph.state import undisturbed, watch_inputs

Numbers = float | Sequence[float]

IDLE = 0.1
"""Share of the variance that a batch norm holds for a channel, below which images do not exercise the channel."""
_MEAN, _STD = 0.46, 0.27
"""Of synthetic images."""
_RUN: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()
"""Captured graph -> its batch norms that run: an image takes a large network seconds."""


@dataclass(frozen=True)
class Normalisation:
    """The input of a network is `(pixel - mean) / std`, for each channel of pixels in [0, 1]."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, pixels: Tensor) -> Tensor:
        """Return pixels (N, C, H, W) as the network takes them."""
        return (pixels - _column(self.mean)) / _column(self.std)

    def undo(self, images: Tensor) -> Tensor:
        """Return the pixels that `apply` was given."""
        return images * _column(self.std) + _column(self.mean)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu").view(1, -1, 1, 1)


def normalisation(mean: Numbers | None, std: Numbers | None, channels: int) -> Normalisation:
    """Return the normalisation that a user states: one number for each channel, or one for all, or none.

    Raises:
        CalibrationError: Another count of numbers, or one that is not finite, or a spread that is not positive.
    """
    full = []
    for name, given in (("mean", 0.0 if mean is None else mean), ("std", 1.0 if std is None else std)):
        values = (given,) if isinstance(given, int | float) else tuple(given)
        values = values * channels if len(values) == 1 else values
        if len(values) != channels:
            raise CalibrationError(f"{name}: {len(values)} values for {channels} channels; pass one or {channels}")
        if not all(map(math.isfinite, values)):
            raise CalibrationError(f"{name}: holds NaN or infinity; pass the numbers that the network was trained with")
        full.append(values)
    if min(full[1]) <= 0:
        raise CalibrationError(f"std: every value must be above 0, got {list(full[1])}")
    return Normalisation(f"(pixel - {_in_words(full[0])}) / {_in_words(full[1])}", *full)


def _in_words(values: Sequence[float]) -> str:
    short = [f"{value:g}" for value in values]
    return short[0] if len(set(short)) == 1 else f"({', '.join(short)})"


def common_normalisations(channels: int) -> list[Normalisation]:
    """Return the normalisations in common use."""
    found = [
        Normalisation("the range 0 to 1", (0.0,) * channels, (1.0,) * channels),
        Normalisation("the range -1 to 1", (0.5,) * channels, (0.5,) * channels),
        Normalisation("the range 0 to 255", (0.0,) * channels, (1 / 255,) * channels),
    ]
    if channels == 3:
        bgr = (103.939 / 255, 116.779 / 255, 123.68 / 255)
        found.append(Normalisation("ImageNet's normalisation", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        found.append(Normalisation("BGR from 0 to 255 less ImageNet's mean", bgr, (1 / 255,) * 3))
    return found


def find_by_norms(model: nn.Module, norms: list[nn.Module], pixels: Tensor, like: Example, place: int) -> Normalisation:
    """Return the common normalisation under which natural images are nearest to what the batch norms hold.

    `place` is that of the input among the example's tensors; the others are repeated or cut to as many images.
    """
    tensors = like.tensors()
    others = [one.repeat(-(-len(pixels) // len(one)), *[1] * (one.dim() - 1))[: len(pixels)] for one in tensors]

    def divergence(one: Normalisation) -> float:
        others[place] = one.apply(pixels).to(tensors[place])
        return float(norm_divergence(model, norms, like.with_tensors(others)))

    return min(common_normalisations(pixels.shape[1]), key=divergence)


def guess_from_example(example: Tensor) -> Normalisation:
    """Return the normalisation that the example's values hint at, for a network without batch norms."""
    channels = example.shape[1]
    low, high = float(example.min()), float(example.max())
    if low < 0 or (low == high and channels == 3):
        return Normalisation("mean 0 and standard deviation 1", (_MEAN,) * channels, (_STD,) * channels)
    return common_normalisations(channels)[2 if high > 2 else 0]


def trained_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms of a model whose statistics are not those that they were built with."""

    def is_trained(module: nn.Module) -> bool:
        mean, variance = _statistics(module)
        return bool(mean.any()) or not bool((variance == 1).all())

    return [module for module in _norms(model) if is_trained(module)]


def norms_in_use(seen: Capture) -> list[nn.Module]:
    """Return the trained batch norms that run on the example: a head that helps in training has norms, too."""
    found = trained_norms(seen.model)
    if seen.graph not in _RUN:
        run = WeakSet[nn.Module]()
        if found:
            with undisturbed(seen.model), watch_inputs(found, lambda module, _: run.add(module)):
                seen.example.run(seen.model)
        _RUN[seen.graph] = run
    return [module for module in found if module in _RUN[seen.graph]]


def check_norms(model: nn.Module) -> None:
    """Refuse batch norms whose statistics no training leaves.

    Raises:
        CalibrationError: One holds NaN, infinity or a negative variance.
    """
    for module in _norms(model):
        mean, variance = _statistics(module)
        if not bool(mean.isfinite().all() and variance.isfinite().all() and (variance >= 0).all()):
            name = next(name for name, one in model.named_modules() if one is module)
            raise CalibrationError(
                f"{name}: its running mean or variance holds NaN, infinity or a variance below zero; repair the weights"
            )


def note_on_untrained(model: nn.Module) -> str:
    """Return that all batch norms of a model are as they were built; empty where one is not, or there are none."""
    if trained_norms(model) or not _norms(model):
        return ""
    return "The network looks untrained: its batch norms are as they were built. Load its weights first (--weights)."


def _norms(model: nn.Module) -> list[nn.Module]:
    """Return the modules that hold a mean and a variance for every channel."""

    def holds(module: nn.Module) -> bool:
        pair = (getattr(module, "running_mean", None), getattr(module, "running_var", None))
        return all(isinstance(one, Tensor) and one.dim() == 1 and not one.is_meta for one in pair)

    return [module for module in model.modules() if holds(module)]


def norm_divergence(model: nn.Module, norms: list[nn.Module], example: Example) -> Tensor:
    """Run the model and return how far it is from its batch norms' statistics, the mean over all their calls.

    That is the Kullback-Leibler divergence of two normal distributions for each channel,

        d = (log(v / u) + (u + (a - m)^2) / v - 1) / 2

    with m, v the norm's own mean and variance and a, u those of its input; log(1 + d) is averaged over the channels, so
    that one dead channel does not hide the others. It is differentiable.
    """
    found: list[Tensor] = []

    def look(norm: nn.Module, args: tuple[Any, ...]) -> None:
        value = args[0].float()
        axes = [axis for axis in range(value.dim()) if axis != 1]
        found.append(_divergence(norm, value.mean(axes), value.var(axes, unbiased=False)))

    with watch_inputs(norms, look):
        example.run(model)
    return torch.stack(found).mean()


def norm_coverage(model: nn.Module, norms: list[nn.Module], batches: Iterable[Example]) -> tuple[float, float]:
    """Return the divergence of batches together, and the share of channels that hardly vary: `IDLE` of the norms'."""
    sums: dict[tuple[int, int], Tensor] = {}
    calls: Counter[int] = Counter()
    known = {id(norm): norm for norm in norms}

    def look(norm: nn.Module, args: tuple[Any, ...]) -> None:
        value = args[0].double().transpose(0, 1).flatten(1)
        moments = torch.stack([torch.full_like(value[:, 0], value.shape[1]), value.sum(1), value.square().sum(1)])
        key = (id(norm), calls[id(norm)])
        calls[id(norm)] += 1
        sums[key] = sums[key] + moments if key in sums else moments

    with watch_inputs(norms, look):
        for batch in batches:
            calls.clear()
            batch.run(model)
    divergences, idle = [], []
    for (which, _), (count, total, squares) in sums.items():
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        divergences.append(_divergence(known[which], mean.float(), variance.float()))
        idle.append((variance < IDLE * _statistics(known[which])[1]).float())
    return float(torch.stack(divergences).mean()), float(torch.cat(idle).mean())


def _divergence(norm: nn.Module, mean: Tensor, variance: Tensor) -> Tensor:
    eps = float(getattr(norm, "eps", 1e-5))
    held_mean, held_variance = _statistics(norm)
    u, v = variance + eps, held_variance + eps
    divergence = ((v / u).log() + (u + (mean - held_mean).square()) / v - 1) / 2
    return divergence.clamp(min=0).log1p().mean()


def _statistics(norm: nn.Module) -> tuple[Tensor, Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean.float(), variance.float()
