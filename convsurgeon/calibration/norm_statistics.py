"""The mean and variance that batch norms hold for every channel, and how far other images are from them.

That is the Kullback-Leibler divergence of two normal distributions for each channel,

    d = (log(v / u) + (u + (a - m)^2) / v - 1) / 2

with m, v the norm's own mean and variance and a, u those of its input; log(1 + d) is averaged over the channels, so
that one dead channel does not hide the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.graph.example import Example
from convsurgeon.graph.state import watch_inputs


def trained_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms of a model whose statistics are not those that they were built with."""
    found = []
    for module in model.modules():
        pair = (getattr(module, "running_mean", None), getattr(module, "running_var", None))
        if all(isinstance(one, Tensor) and one.dim() == 1 and not one.is_meta for one in pair):
            mean, variance = _statistics(module)
            if bool(mean.any()) or not bool((variance == 1).all()):
                found.append(module)
    return found


def norm_divergence(model: nn.Module, norms: list[nn.Module], example: Example) -> Tensor:
    """Run the model and return the mean divergence over all calls of its norms, which is differentiable."""
    found: list[Tensor] = []

    def look(norm: nn.Module, args: tuple[Any, ...]) -> None:
        value = args[0].float()
        axes = [axis for axis in range(value.dim()) if axis != 1]
        eps = float(getattr(norm, "eps", 1e-5))
        held_mean, held_variance = _statistics(norm)
        variance, held = value.var(axes, unbiased=False) + eps, held_variance + eps
        divergence = ((held / variance).log() + (variance + (value.mean(axes) - held_mean).square()) / held - 1) / 2
        found.append(divergence.clamp(min=0).log1p().mean())

    with watch_inputs(norms, look):
        example.run(model)
    return torch.stack(found).mean()


def _statistics(norm: nn.Module) -> tuple[Tensor, Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean.float(), variance.float()
