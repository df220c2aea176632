"""Images changed until a network's batch norms see the statistics that they know.

As ZeroQ (Cai et al. 2020) and DeepInversion (Yin et al. 2020) do, but from drawn images, which are near: a few passes
do. Adam on the pixels, all images in every pass, in batches drawn anew so that none is fitted to its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from convsurgeon.base import processes as world
from convsurgeon.calibration.norm_statistics import Gauge, gauged
from convsurgeon.graph.example import Example

STEP = 0.0225
"""Of a pixel's range: the most that a value moves in the first pass; half a cosine brings it down to nothing. Twice as
much adds noise that the passes do not take away again: ResNet-20 in 10 passes 0.057 apart instead of 0.029.
"""

_FIRST, _SECOND = 0.9, 0.9
"""What Adam keeps of the gradient and of its square from pass to pass; there are few."""


@dataclass(frozen=True)
class Inverted:
    """Images of every input, and the mean divergence over the norms before and after."""

    images: tuple[Tensor, ...]
    before: float
    after: float


def inverted(
    model: nn.Module,
    norms: list[nn.Module],
    images: Sequence[Tensor],
    units: Sequence[Tensor],
    bounds: Sequence[tuple[Tensor, Tensor]],
    like: Example,
    passes: int,
    batch: int,
    seed: int,
    progress: bool,
) -> Inverted:
    """Changes images in place.

    Args:
        model: in eval mode; no gradient of its parameters is computed.
        norms: those that know something.
        images: (N, C, H, W) of every input, float32 on the CPU.
        units: what a pixel's range comes to in each, (1, C, 1, 1).
        bounds: least and largest values of each, (1, C, 1, 1).
        like: the example.
        passes: over all images.
        batch: images in each run; a last one that is smaller is left out of a pass.
        seed: of the batches' order.
        progress: whether to show a bar.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(images[0])
    states = [(torch.zeros_like(one), torch.zeros_like(one)) for one in images]
    divergences: list[float] = []
    with gauged(norms) as gauge, tqdm(total=passes, desc="images", disable=world.silent(progress)) as bar:
        for number in range(passes):
            rate = STEP * (1 + math.cos(math.pi * number / passes)) / 2
            order = torch.randperm(count, generator=generator)
            found = []
            for start in range(0, count - batch + 1, batch):
                chosen = order[start : start + batch]
                value, gradients = _gradients(model, gauge, [one[chosen] for one in images], like)
                found.append(value)
                for one, unit, (low, high), state, gradient in zip(
                    images, units, bounds, states, gradients, strict=True
                ):
                    moved = one[chosen] - rate * unit * _direction(state, chosen, gradient, number)
                    one[chosen] = torch.maximum(torch.minimum(moved, high), low)
            divergences.append(sum(found) / len(found))
            bar.update()
            bar.set_postfix_str(f"apart from the batch norms' own {divergences[-1]:.3f}")
    return Inverted(tuple(images), divergences[0], divergences[-1])


def _direction(state: tuple[Tensor, Tensor], chosen: Tensor, gradient: Tensor, number: int) -> Tensor:
    """Adam's, for some of the images; the state is updated."""
    mean, square = state
    mean[chosen] = _FIRST * mean[chosen] + (1 - _FIRST) * gradient
    square[chosen] = _SECOND * square[chosen] + (1 - _SECOND) * gradient.square()
    grown = [1 - kept ** (number + 1) for kept in (_FIRST, _SECOND)]
    return (mean[chosen] / grown[0]) / ((square[chosen] / grown[1]).sqrt() + 1e-12)


def _gradients(model: nn.Module, gauge: Gauge, images: Sequence[Tensor], like: Example) -> tuple[float, list[Tensor]]:
    """The norms' mean divergence on some images, and its gradient by each input."""
    places = like.tensors()
    with torch.enable_grad():
        leaves = [one.to(place).requires_grad_() for one, place in zip(images, places, strict=True)]
        numbered = iter(leaves)
        gauge.reset()
        like.map(lambda _: next(numbered)).run(model)
        loss = gauge.mean()
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    gauge.reset()
    pairs = zip(gradients, images, strict=True)
    return float(loss.detach()), [torch.zeros_like(one) if g is None else g.float().cpu() for g, one in pairs]
