"""The mean and variance that batch norms hold for every channel, and how far other images are from them.

That is the Kullback-Leibler divergence of two normal distributions for each channel,

    d = (log(v / u) + (u + (a - m)^2) / v - 1) / 2

with m, v the norm's own mean and variance and a, u those of its input; log(1 + d) is averaged over the channels, so
that one dead channel does not hide the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.graph.example import Example
from convsurgeon.graph.state import watch_inputs


def trained_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms of a model whose statistics are not those that they were built with."""
    return [module for module in model.modules() if _has_statistics(module) and not _fresh(module)]


def held_statistics(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a norm's own mean and variance (C,) in float32."""
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean.float(), variance.float()


class NormWatch:
    """Compares what norms are given with what they hold, in runs of the model.

    Attributes:
        first: Mean and variance (C,) of the first norm's input in every run.
    """

    def __init__(self, norms: list[nn.Module]) -> None:
        self.first: list[tuple[Tensor, Tensor]] = []
        self._norms = norms
        self._divergences: list[Tensor] = []

    def run(self, model: nn.Module, example: Example) -> Tensor:
        """Run the model and return the mean divergence over all calls of the norms, which is differentiable."""
        self._divergences.clear()
        example.run(model)
        mean = torch.stack(self._divergences).mean()
        self._divergences.clear()
        return mean

    def look(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        """Compare one call."""
        value = args[0].float()
        axes = [axis for axis in range(value.dim()) if axis != 1]
        mean, variance = value.mean(axes), value.var(axes, unbiased=False)
        if norm is self._norms[0]:
            self.first.append((mean.detach(), variance.detach()))
        self._divergences.append(_divergence(norm, mean, variance))


@contextmanager
def watch_norms(norms: list[nn.Module]) -> Iterator[NormWatch]:
    """Watch norms for the length of the block."""
    watch = NormWatch(norms)
    with watch_inputs(norms, watch.look):
        yield watch


def _divergence(norm: nn.Module, mean: Tensor, variance: Tensor) -> Tensor:
    held_mean, held_variance = held_statistics(norm)
    eps = float(getattr(norm, "eps", 1e-5))
    found, held = variance + eps, held_variance + eps
    divergence = ((held / found).log() + (found + (mean - held_mean).square()) / held - 1) / 2
    return divergence.clamp(min=0).log1p().mean()


def _has_statistics(module: nn.Module) -> bool:
    pair = (getattr(module, "running_mean", None), getattr(module, "running_var", None))
    return all(isinstance(tensor, Tensor) and tensor.dim() == 1 and not tensor.is_meta for tensor in pair)


def _fresh(norm: nn.Module) -> bool:
    mean, variance = held_statistics(norm)
    return not bool(mean.any()) and bool((variance == 1).all())
