"""Change images until a network's batch norms are given the statistics that they hold.

As ZeroQ (Cai et al. 2020) and DeepInversion (Yin et al. 2020) do, but from natural images, so that few passes do. Every
pass draws new batches, so that no image is fitted to its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convsurgeon.base.progress import bar
from convsurgeon.calibration.normalisation import Normalisation, norm_divergence
from convsurgeon.graph.example import Example

_STEP = 0.0225
"""Of a pixel's range: the largest change of a value in the first pass; a half cosine lowers it to nothing."""
_BETAS = (0.9, 0.9)
"""Of Adam, lower than usual: there are few passes."""


def invert(
    model: nn.Module,
    norms: list[nn.Module],
    pixels: Sequence[Tensor],
    scales: Sequence[Normalisation],
    like: Example,
    *,
    passes: int,
    batch: int,
    seed: int,
    progress: bool,
) -> tuple[list[Tensor], float, float]:
    """Return changed pixels, and the norms' mean divergence before and after.

    `pixels` are (N, C, H, W) on the CPU for every input, each with its normalisation. Images that do not fill a batch
    wait for the next pass.
    """
    generator = torch.Generator().manual_seed(seed)
    changed = [one.clone().requires_grad_() for one in pixels]
    limits = [(min(0.0, float(one.min())), max(1.0, float(one.max()))) for one in pixels]
    optimizer = torch.optim.Adam(changed, betas=_BETAS, eps=1e-12)
    divergences: list[float] = []
    with torch.enable_grad(), bar(total=passes, desc="images", show=progress) as shown:
        for number in range(passes):
            optimizer.param_groups[0]["lr"] = _STEP * (1 + math.cos(math.pi * number / passes)) / 2
            order = torch.randperm(len(pixels[0]), generator=generator, device="cpu")
            found = []
            for start in range(0, len(order) - batch + 1, batch):
                rows = order[start : start + batch]
                parts = zip(changed, scales, like.tensors(), strict=True)
                inputs = [scale.apply(one[rows]).to(tensor) for one, scale, tensor in parts]
                divergence = norm_divergence(model, norms, like.with_tensors(inputs))
                divergence.backward(inputs=changed)
                found.append(float(divergence.detach()))
            optimizer.step()
            optimizer.zero_grad()
            for one, (low, high) in zip(changed, limits, strict=True):
                one.data.clamp_(low, high)
            divergences.append(sum(found) / len(found))
            shown.update()
            shown.set_postfix_str(f"divergence from the batch norms {divergences[-1]:.3f}")
    return [one.detach() for one in changed], divergences[0], divergences[-1]
