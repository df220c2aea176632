r"""What an image-to-image network adds to its input: of a denoiser the noise, of super-resolution the detail.

Such a network passes its input on. An error of a hundredth of the *output* may then be all that the network was made
for. So the output is regressed on the input, channel by channel and enlarged to the output's size, and an error counts
against what the input does not explain:

    added = |y - (a x + b)|^2 / |y - mean(y)|^2

Where the input explains less than `EXPLAINED` of the output (a classifier, a segmentation, another number of channels),
the network makes something else of its input, and all of the output counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsurgeon.graph.example import Example
from convsurgeon.graph.outputs import float_tensors
from convsurgeon.graph.state import undisturbed

EXPLAINED = 0.9
_LEAST = 1e-9


def added_share(model: nn.Module, batches: Sequence[Example]) -> float:
    """Return the share of the output's variance that is not in the input; 1 for what is not image to image."""
    wrong = energy = 0.0
    with undisturbed(model):
        for batch in batches:
            output, inputs = float_tensors(batch.run(model)), batch.tensors()
            if len(output) != 1 or len(inputs) != 1 or not _alike(inputs[0], output[0]):
                return 1.0
            left, whole = _remainder(inputs[0], output[0])
            wrong, energy = wrong + left, energy + whole
    share = wrong / energy if energy > 0 else 1.0
    return max(share, _LEAST) if share < 1 - EXPLAINED else 1.0


def _alike(image: Tensor, output: Tensor) -> bool:
    """Return whether the output is an image of the input's channels and size, or a whole number of times larger."""
    if image.dim() != 4 or output.dim() != 4 or image.shape[:2] != output.shape[:2]:
        return False
    return all(
        large >= small and large % small == 0 for small, large in zip(image.shape[2:], output.shape[2:], strict=True)
    )


def _remainder(image: Tensor, output: Tensor) -> tuple[float, float]:
    """Return the output's energy beside a line over the input, channel by channel, and its energy around the mean."""
    size = list(output.shape[2:])
    x = image.double() if size == list(image.shape[2:]) else F.interpolate(image.double(), size, mode="bicubic")
    x, y = (value.transpose(0, 1).flatten(1) for value in (x, output.double()))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    slope = (x * y).sum(1, keepdim=True) / (x * x).sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return float((y - slope * x).square().sum()), float(y.square().sum())
