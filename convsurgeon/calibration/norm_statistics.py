"""What batch norms know of the images that a network was trained on: the mean and the variance of every channel.

How far other images are from that is told by the divergence of two normal distributions, per channel

    d = (log(v / u) + (u + (a - m)^2) / v - 1) / 2

with m, v the norm's own mean and variance and a, u those of what it sees; log(1 + d) is averaged over the channels, so
that one dead channel does not hide the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convsurgeon.graph.state import watch_inputs


def informed(model: nn.Module) -> list[nn.Module]:
    """Batch norms with statistics of their own: those that were trained, not merely built."""
    return [module for module in model.modules() if _keeps_statistics(module) and not _fresh(module)]


@dataclass
class Gauge:
    """Filled by a run of the model: for every call of a norm how far what it saw is from what it knows."""

    divergences: list[Tensor] = field(default_factory=list)
    first: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Mean and variance (C,) that the first norm saw in every run."""

    def mean(self) -> Tensor:
        """Over all norms of the last run; differentiable."""
        return torch.stack(self.divergences).mean()

    def reset(self) -> None:
        """Before the next run."""
        self.divergences.clear()


@contextmanager
def gauged(norms: list[nn.Module]) -> Iterator[Gauge]:
    """Watches norms for the length of the block."""
    gauge = Gauge()

    def look(norm: nn.Module, args: tuple[Any, ...]) -> None:
        value = args[0].float()
        axes = [axis for axis in range(value.dim()) if axis != 1]
        mean, variance = value.mean(axes), value.var(axes, unbiased=False)
        if norm is norms[0]:
            gauge.first.append((mean.detach(), variance.detach()))
        gauge.divergences.append(divergence(norm, mean, variance))

    with watch_inputs(norms, look):
        yield gauge


def divergence(norm: nn.Module, mean: Tensor, variance: Tensor) -> Tensor:
    """Mean over the channels of log(1 + d)."""
    known, spread = statistics(norm)
    eps = float(getattr(norm, "eps", 1e-5))
    seen, wanted = variance + eps, spread + eps
    apart = ((wanted / seen).log() + (seen + (mean - known).square()) / wanted - 1) / 2
    return apart.clamp(min=0).log1p().mean()


def statistics(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A norm's own mean and variance (C,) in float32."""
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean.float(), variance.float()


def _keeps_statistics(module: nn.Module) -> bool:
    pair = (getattr(module, "running_mean", None), getattr(module, "running_var", None))
    return all(isinstance(tensor, Tensor) and tensor.dim() == 1 and not tensor.is_meta for tensor in pair)


def _fresh(norm: nn.Module) -> bool:
    mean, variance = statistics(norm)
    return not bool(mean.any()) and bool((variance == 1).all())
